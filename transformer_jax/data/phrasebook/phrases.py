# SPDX-License-Identifier: Apache-2.0
"""Throws the dice for the parts of a clause: who, what, where, when."""

import random
from collections.abc import Sequence
from itertools import permutations
from typing import TypeVar

from transformer_jax.data.phrasebook import inflection
from transformer_jax.data.phrasebook.clauses import NO_TIME, Pair
from transformer_jax.data.phrasebook.inflection import Phrase, noun_phrase
from transformer_jax.data.phrasebook.nouns import ADJECTIVES, NOUNS, Adjective
from transformer_jax.data.phrasebook.numerals import DAYS, clock_times, counting, dates

T = TypeVar("T")


class Dice(random.Random):
    """A generator with the two throws that the grammar needs, both quick."""

    def pick(self, items: Sequence[T]) -> T:
        """One of the items; to give an item more weight, say it more than once."""
        return items[int(self.random() * len(items))]

    def chance(self, probability: float) -> bool:
        """True as often as the probability says."""
        return self.random() < probability


_EITHER = [inflection.THIS, *inflection.POSSESSIVES]
SINGULAR = [inflection.THE, inflection.A] * 5 + [inflection.EVERY, *_EITHER]
PLURAL = [inflection.THE, inflection.BARE] * 4 + [inflection.ALL, inflection.SOME, inflection.MANY]
PLURAL += _EITHER
UNCOUNTED = [inflection.THE] * 3 + [inflection.BARE] * 5 + _EITHER
HOLDERS = [inflection.THE, inflection.THE, *_EITHER]

# By the subject's person, the pronouns that it may meet: I do not meet me, nor do we.
OBJECT_PRONOUNS = {
    0: (1, 2, 3),
    1: (0, 2, 3, 4),
    2: (0, 1, 2, 3, 4),
    3: (1, 2, 3),
    4: (0, 1, 2, 3, 4),
}
COUPLES = [
    Phrase(english, english, (f"{one.english} und {other.english}",) * 3, 4, "definite", "p")
    for one, other in permutations(inflection.PEOPLE, 2)
    for english in [f"{one.english} and {other.english}"]
]


def adjective(dice: Dice, category: str) -> Adjective | None:
    """Something to say of a noun of this category, in half of the cases."""
    return dice.pick(ADJECTIVES[category]) if dice.random() < 0.5 else None


def noun(dice: Dice, category: str) -> Phrase:
    """The red books, a small apple, cold milk, twenty-one chairs, the old man's dog."""
    word = dice.pick(NOUNS[category])
    described = adjective(dice, category)
    throw = dice.random()
    if throw < 0.05:
        return inflection.owned(holder(dice), described, word)
    if throw < 0.08:
        return noun_phrase(dice.pick(inflection.OWNERS), described, word)
    if not word.plural:
        return noun_phrase(dice.pick(UNCOUNTED), described, word)
    if throw < 0.7:
        return noun_phrase(dice.pick(SINGULAR), described, word)
    if throw < 0.94:
        return noun_phrase(dice.pick(PLURAL), described, word, True)
    if throw < 0.98:
        number = inflection.number_determiner(2 + int(98 * dice.random()))
    else:
        number = inflection.definite_number(2 + int(11 * dice.random()))
    return noun_phrase(number, described, word, True)


def holder(dice: Dice) -> Phrase:
    """One definite person who can have things: the old man."""
    return noun_phrase(dice.pick(HOLDERS), adjective(dice, "person"), dice.pick(NOUNS["person"]))


def subject(dice: Dice) -> Phrase:
    """Who does it: a pronoun, a name, a pair of names, a person."""
    throw = dice.random()
    if throw < 0.4:
        return dice.pick(inflection.PRONOUNS)
    if throw < 0.55:
        return dice.pick(inflection.PEOPLE)
    if throw < 0.6:
        return dice.pick(COUPLES)
    return noun(dice, "person")


def somebody(dice: Dice, person: int) -> Phrase:
    """To whom the subject, of this grammatical person, does it."""
    throw = dice.random()
    if throw < 0.25:
        return inflection.PRONOUNS[dice.pick(OBJECT_PRONOUNS[person])]
    return dice.pick(inflection.PEOPLE) if throw < 0.35 else noun(dice, "person")


def place(dice: Dice, prepositions: Sequence[str]) -> Pair:
    """In the old garden, im alten Garten."""
    return inflection.prepositional(dice.pick(prepositions), noun(dice, "place"))


def _with_clock(dice: Dice, days: list[Pair], others: list[Pair]) -> Pair:
    """A day, in one of three cases with an hour; or a longer time."""
    if dice.random() < 0.25:
        return dice.pick(others)
    english, german = dice.pick(days)
    if dice.random() < 0.35:
        hour, stunde = dice.pick(CLOCK)
        return f"{english} at {hour}", f"{german} um {stunde}"
    return english, german


def _counted(english: str, german: str) -> list[Pair]:
    """In two weeks, in zwei Wochen: {} is where the number and its unit go."""
    pairs = [counting(n, unit, einheit) for n in range(2, 13) for unit, einheit in UNITS]
    return [(english.format(weeks), german.format(wochen)) for weeks, wochen in pairs]


CLOCK = clock_times()
DATES = [(f"on {english}", f"am {dative}") for english, _, dative in dates()]
UNITS = [("days", "Tagen"), ("weeks", "Wochen"), ("months", "Monaten"), ("years", "Jahren")]

# When: a day may be followed by an hour. Dates are many, so the other days are said repeatedly.
HABIT_DAYS = [
    ("every day", "jeden Tag"),
    ("every morning", "jeden Morgen"),
    ("every evening", "jeden Abend"),
    *[(f"on {day}s", f"{tag.lower()}s") for day, tag in DAYS.items()],
]
HABITS = [
    ("every week", "jede Woche"),
    ("every month", "jeden Monat"),
    ("every year", "jedes Jahr"),
    ("every weekend", "jedes Wochenende"),
    ("in spring", "im Frühling"),
    ("in summer", "im Sommer"),
    ("in autumn", "im Herbst"),
    ("in winter", "im Winter"),
]
PAST_DAYS = [
    ("yesterday", "gestern"),
    ("the day before yesterday", "vorgestern"),
    ("yesterday evening", "gestern Abend"),
    *[(f"last {day}", f"letzten {tag}") for day, tag in DAYS.items()],
] * 20 + DATES
PAST = [
    ("last week", "letzte Woche"),
    ("last month", "letzten Monat"),
    ("last year", "letztes Jahr"),
    ("last weekend", "letztes Wochenende"),
    ("last summer", "letzten Sommer"),
    ("last winter", "letzten Winter"),
] * 4 + _counted("{} ago", "vor {}")
FUTURE_DAYS = [
    ("tomorrow", "morgen"),
    ("the day after tomorrow", "übermorgen"),
    ("tomorrow morning", "morgen früh"),
    ("this evening", "heute Abend"),
    *[(f"next {day}", f"nächsten {tag}") for day, tag in DAYS.items()],
    *[(f"on {day}", f"am {tag}") for day, tag in DAYS.items()],
] * 15 + DATES
FUTURE = [
    ("next week", "nächste Woche"),
    ("next month", "nächsten Monat"),
    ("next year", "nächstes Jahr"),
    ("next weekend", "nächstes Wochenende"),
    ("next summer", "nächsten Sommer"),
    ("next winter", "nächsten Winter"),
] * 4 + _counted("in {}", "in {}")


def time(dice: Dice, tense: str) -> Pair:
    """When, as the tense allows: every day with the present, yesterday with the past."""
    if tense == "present":
        return _with_clock(dice, HABIT_DAYS, HABITS)
    if tense in ("past", "wanted to", "had to"):
        return _with_clock(dice, PAST_DAYS, PAST)
    if tense == "perfect":
        return NO_TIME
    return _with_clock(dice, FUTURE_DAYS, FUTURE)
