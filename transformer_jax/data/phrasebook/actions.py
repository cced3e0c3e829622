# SPDX-License-Identifier: Apache-2.0
"""Throws the dice for clauses about what somebody does."""

from collections.abc import Sequence
from typing import NamedTuple

from transformer_jax.data.phrasebook import inflection, phrases, verbs
from transformer_jax.data.phrasebook.clauses import NO_TIME, Clause, Pair, spaced
from transformer_jax.data.phrasebook.inflection import Phrase, conjugate
from transformer_jax.data.phrasebook.phrases import Dice
from transformer_jax.data.phrasebook.verbs import Verb


class Predicate(NamedTuple):
    """A verb with its objects and places, in English and German.

    `pronoun` stands apart, for it moves. `denied` and `done` are the German with nicht (or kein)
    and schon in their places, or nothing where one would not say it.
    """

    verb: Verb
    english: str
    pronoun: str
    german: str
    denied: str
    done: str


def _in_cases(obj: Phrase, case: int) -> tuple[str, str, str, str]:
    """A pronoun or nothing, then the object plain, denied, done."""
    german = obj.german[case]
    if obj.kind == "pronoun":
        return german, "", "nicht", "schon"
    if obj.kind == "definite":
        return "", german, f"{german} nicht", f"{german} schon"
    return "", german, obj.negated[case] if obj.kind == "indefinite" else "", ""


def _placed(predicate: Predicate, place: Pair) -> Predicate:
    """Adds where; it follows the objects and what denies them."""
    verb, english, pronoun, german, denied, done = predicate
    return Predicate(
        verb,
        spaced(english, place[0]),
        pronoun,
        spaced(german, place[1]),
        denied and f"{denied} {place[1]}",
        done and f"{done} {place[1]}",
    )


STATIC = ["in"] * 5 + ["in front of", "behind", "next to"]
COMPANY = ["with", "with", "without"]
DONE_FOR_OTHERS = {"buy", "write", "paint", "draw", "repair", "wash", "find"}


def _object(dice: Dice, verb: Verb, person: int) -> tuple[str, Phrase]:
    category = dice.pick(verb.objects)
    obj = phrases.somebody(dice, person) if category == "person" else phrases.noun(dice, category)
    return category, obj


def transitive(dice: Dice, person: int, placed: bool) -> Predicate:
    """Pick up the child, the child in the accusative."""
    verb = dice.pick(verbs.TRANSITIVE)
    category, obj = _object(dice, verb, person)
    words = (obj.english_object, verb.particle)
    english = spaced(*(words if obj.kind == "pronoun" else reversed(words)))
    predicate = Predicate(verb, english, *_in_cases(obj, inflection.ACCUSATIVE))
    if category != "person" and verb.english in DONE_FOR_OTHERS and dice.chance(0.2):
        receiver = inflection.prepositional("for", phrases.somebody(dice, person))
        predicate = _placed(predicate, receiver)
    if placed and category != "place" and dice.chance(0.12):
        predicate = _placed(predicate, phrases.place(dice, STATIC))
    return predicate


def dative(dice: Dice, person: int, placed: bool) -> Predicate:
    """Help the child, the child in the dative."""
    verb = dice.pick(verbs.DATIVE)
    _, obj = _object(dice, verb, person)
    predicate = Predicate(verb, obj.english_object, *_in_cases(obj, inflection.DATIVE))
    if placed and dice.chance(0.15):
        predicate = _placed(predicate, phrases.place(dice, STATIC))
    return predicate


def giving(dice: Dice, person: int, placed: bool) -> Predicate:
    """Give the child (dative) an apple (accusative)."""
    del placed
    verb = dice.pick(verbs.GIVING)
    receiver = phrases.somebody(dice, person)
    thing = phrases.noun(dice, dice.pick(verb.objects))
    pronoun, before, _, _ = _in_cases(receiver, inflection.DATIVE)
    _, german, denied, done = _in_cases(thing, inflection.ACCUSATIVE)
    if receiver.kind == "quantity":
        denied = done = ""
    return Predicate(
        verb,
        f"{receiver.english_object} {thing.english}",
        pronoun,
        spaced(before, german),
        denied and spaced(before, denied),
        done and spaced(before, done),
    )


def located(dice: Dice, person: int, placed: bool) -> Predicate:
    """Work in the garden, perhaps with somebody."""
    verb = dice.pick(verbs.LOCATED)
    predicate = Predicate(verb, "", "", "", "nicht", "schon")
    if verb.english not in ("live", "sleep") and dice.chance(0.3):
        company = phrases.somebody(dice, person)
        predicate = _placed(predicate, inflection.prepositional(dice.pick(COMPANY), company))
    return _placed(predicate, phrases.place(dice, STATIC)) if placed else predicate


def moving(dice: Dice, person: int, placed: bool) -> Predicate:
    """Go into the garden, to the school: there is always a where."""
    del person, placed
    predicate = Predicate(dice.pick(verbs.MOVING), "", "", "", "nicht", "schon")
    return _placed(predicate, phrases.place(dice, ["to", "into"]))


def happening(dice: Dice, person: int, placed: bool) -> Predicate:
    """Get up, aufstehen; nobody and nowhere."""
    del person, placed
    return Predicate(dice.pick(verbs.HAPPENING), "", "", "", "nicht", "schon")


OBJECTIVE = [transitive] * 11 + [giving] * 3 + [dative] * 2
PLACELESS = [*OBJECTIVE, *[located] * 3]
ACTIONS = [*PLACELESS, moving, moving, happening]

# The tenses, each as often as it is wanted. English says the past only with a time or when asked
# for one, and the perfect only without: so one German sentence has one English, too.
PLAIN = ["present"]
_ALWAYS = ["present"] * 6 + ["will"] * 3 + ["can", "can", "may", "should", "wanted to", "had to"]
_ALWAYS += ["would like to", "want to", "have to"] * 2
UNTIMED = [*_ALWAYS, *["perfect"] * 5]
ASKED = [*_ALWAYS, *["past"] * 5]
TENSES = [*ASKED, *["perfect"] * 5]


def action(
    dice: Dice,
    who: Phrase | None = None,
    *,
    tenses: Sequence[str] = TENSES,
    predicates: Sequence = ACTIONS,
    timed: bool = True,
    placed: bool = True,
    deniable: bool = True,
) -> Clause:
    """Somebody does something, perhaps not, perhaps somewhere, at some time."""
    who = who or phrases.subject(dice)
    tense = dice.pick(tenses)
    predicate = dice.pick(predicates)(dice, who.person, placed)
    adverb, middle = "", predicate.german
    if deniable:
        if predicate.denied and who.kind != "quantity" and dice.random() < 0.17:
            adverb, middle = "not", predicate.denied
        elif predicate.done and tense == "perfect" and dice.random() < 0.3:
            adverb, middle = "already", predicate.done
    # Not every day is not each day not: what happens by habit is not denied.
    speaks_of_time = tense == "past" or (
        dice.random() < 0.45 and not (adverb == "not" and tense == "present")
    )
    time = phrases.time(dice, tense) if timed and speaks_of_time else NO_TIME
    verb = conjugate(predicate.verb, tense, who.person)
    return Clause(who, verb, adverb, predicate.english, predicate.pronoun, middle, time)
