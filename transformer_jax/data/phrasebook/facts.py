# SPDX-License-Identifier: Apache-2.0
"""Throws the dice for clauses about how things are: qualities, ages, prices, numbers, hours."""

from transformer_jax.data.phrasebook import inflection, phrases, verbs
from transformer_jax.data.phrasebook.clauses import NO_TIME, Clause, spaced
from transformer_jax.data.phrasebook.inflection import THE, Phrase, be, conjugate, noun_phrase
from transformer_jax.data.phrasebook.nouns import ADJECTIVES, NOUNS, Noun
from transformer_jax.data.phrasebook.numerals import countable, counting, price, year
from transformer_jax.data.phrasebook.phrases import CLOCK, DATES, Dice

DEGREES = [("", "")] * 3 + [("very", "sehr"), ("too", "zu")]
DESCRIBED = ["animal", "food", "text", "clothing", "thing", "machine", "container", "place"]
GOODS = ["food", "food", "text", "clothing", "thing", "machine"]
TIMETABLE_TENSES = ["present", "present", "past", "will"]

# What has how many of what.
AMOUNTS = [
    ("text", "book", "pages", "Seiten"),
    ("text", "novel", "pages", "Seiten"),
    ("text", "report", "pages", "Seiten"),
    ("place", "village", "inhabitants", "Einwohner"),
    ("place", "town", "inhabitants", "Einwohner"),
    ("place", "school", "pupils", "Schüler"),
    ("place", "hotel", "rooms", "Zimmer"),
    ("place", "library", "books", "Bücher"),
    ("place", "museum", "pictures", "Bilder"),
]


def _known(category: str, english: str) -> Noun:
    return next(noun for noun in NOUNS[category] if noun.english == english)


HAVE = next(verb for verb in verbs.TRANSITIVE if verb.english == "have")
OPEN_PLACES = [_known("place", name) for name in ("school", "library", "church", "museum", "shop")]


def number(dice: Dice, top: int = 5000) -> int:
    """A number from 2 that a plural may follow; small ones as likely as large ones."""
    low = dice.pick([limit for limit in (2, 20, 100, 1000) if limit < top])
    n = low + int(dice.random() * (min(low * 10, top) - low))
    return n if countable(n) else n + 1


def quality(dice: Dice) -> Clause:
    """The old house was not very big."""
    if dice.chance(0.55):
        category, who = "person", phrases.subject(dice)
    else:
        category = dice.pick(DESCRIBED)
        who = phrases.noun(dice, category)
    return described(dice, category, who)


def described(dice: Dice, category: str, who: Phrase) -> Clause:
    """That this person, or thing of a category, is or was of some quality."""
    quality = dice.pick(ADJECTIVES[category])
    much, sehr = dice.pick(DEGREES)
    tense = dice.pick(["present", "past"])
    german = spaced(sehr, quality.german)
    adverb = "not" if who.kind != "quantity" and dice.chance(0.2) else ""
    time = phrases.time(dice, tense) if tense == "past" and dice.chance(0.4) else NO_TIME
    verb = be(tense, who.person, inflection.SEIN if tense == "present" else inflection.WAR)
    middle = f"nicht {german}" if adverb else german
    return Clause(who, verb, adverb, spaced(much, quality.english), "", middle, time)


def age(dice: Dice) -> Clause:
    """Anna is twenty-one years old."""
    who, years = phrases.subject(dice), 2 + int(98 * dice.random())
    english, german = counting(years, "years old", "Jahre alt")
    return Clause(who, be("present", who.person, inflection.SEIN), "", english, "", german, NO_TIME)


def cost(dice: Dice) -> Clause:
    """The red book costs three euros fifty."""
    category = dice.pick(GOODS)
    what = phrases.noun(dice, category)
    if category == "machine":
        english, german = price(number(dice))
    else:
        cents = 5 * (2 + int(18 * dice.random())) if dice.chance(0.7) else 0
        english, german = price(1 + int(99 * dice.random()), cents)
    verb = conjugate(verbs.COST, "present", what.person)
    return Clause(what, verb, "", english, "", german, NO_TIME)


def amount(dice: Dice) -> tuple[Clause, str, str]:
    """The village has two thousand and five inhabitants; also in both languages what it has."""
    category, name, counted, gezaehlt = dice.pick(AMOUNTS)
    adjective = phrases.adjective(dice, category)
    what = noun_phrase(dice.pick(phrases.HOLDERS), adjective, _known(category, name))
    english, german = counting(number(dice), counted, gezaehlt)
    verb = conjugate(HAVE, "present", 2)
    return Clause(what, verb, "", english, "", german, NO_TIME), counted, gezaehlt


def birth(dice: Dice) -> Clause:
    """Anna was born on the third of May nineteen eighty-four."""
    who = phrases.subject(dice)
    when = 1910 + int(dice.random() * 100)
    english, german = year(when)
    if dice.chance(0.7):
        day, tag = dice.pick(DATES)
        time = (f"{day} {english}", f"{tag} {german}")
    else:
        time = (f"in the year {english}", f"im Jahr {german}")
    verb = be("past", who.person, inflection.WURDE, "geboren", "born")
    return Clause(who, verb, "", "", "", "", time)


def timetable(dice: Dice) -> Clause:
    """The train departs every day at half past three."""
    verb, tense = dice.pick(verbs.DEPARTING), dice.pick(TIMETABLE_TENSES)
    noun = dice.pick(NOUNS[verb.objects[0]])
    what = noun_phrase(THE, phrases.adjective(dice, verb.objects[0]), noun)
    time = phrases.time(dice, tense)
    return Clause(what, conjugate(verb, tense, 2), "", "", "", "", time)


def opening(dice: Dice) -> Clause:
    """The museum is open from nine o'clock to half past five."""
    noun = dice.pick(OPEN_PLACES)
    what = noun_phrase(THE, phrases.adjective(dice, "place"), noun)
    (start, von), (end, bis) = dice.pick(CLOCK), dice.pick(CLOCK)
    english, german = f"open from {start} to {end}", f"von {von} bis {bis} geöffnet"
    return Clause(what, be("present", 2, inflection.SEIN), "", english, "", german, NO_TIME)


FACTS = [quality] * 6 + [age, cost, cost, birth, timetable, timetable, opening]


def fact(dice: Dice) -> Clause:
    """Any of them."""
    return dice.pick(FACTS)(dice)
