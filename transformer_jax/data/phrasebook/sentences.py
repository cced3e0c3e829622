# SPDX-License-Identifier: Apache-2.0
"""The constructions: each makes a sentence of clauses, in English and in German."""

from collections.abc import Callable

from transformer_jax.data.phrasebook import actions, facts, inflection, phrases, verbs
from transformer_jax.data.phrasebook.actions import ASKED, PLAIN, UNTIMED, action
from transformer_jax.data.phrasebook.clauses import (
    NO_TIME,
    Clause,
    Pair,
    fronted,
    infinitive,
    inverted,
    question,
    sentence,
    spaced,
    statement,
    subordinate,
)
from transformer_jax.data.phrasebook.facts import fact
from transformer_jax.data.phrasebook.inflection import (
    WHO,
    Conjugated,
    Phrase,
    conjugate,
    noun_phrase,
)
from transformer_jax.data.phrasebook.nouns import NOUNS, Noun
from transformer_jax.data.phrasebook.numerals import DAYS, dates, english_number, german_number
from transformer_jax.data.phrasebook.phrases import Dice


def _anything(dice: Dice) -> Clause:
    return fact(dice) if dice.random() < 0.15 else action(dice)


def _brief(dice: Dice, tenses: list[str]) -> Clause:
    return action(dice, tenses=tenses, timed=False, deniable=tenses != PLAIN)


def simple(dice: Dice) -> Pair:
    """She has bought the old book. Yesterday she bought ..., gestern hat sie ... gekauft."""
    clause = action(dice)
    return sentence(fronted(clause) if clause.time[0] and dice.chance(0.5) else statement(clause))


def factual(dice: Dice) -> Pair:
    """The red book costs three euros fifty. Anna was born on the third of May."""
    clause = fact(dice)
    return sentence(fronted(clause) if clause.time[0] and dice.chance(0.3) else statement(clause))


def yes_or_no(dice: Dice) -> Pair:
    """Has she bought the old book? Hat sie das alte Buch gekauft?"""
    return sentence(question(_anything(dice)), "?")


def when(dice: Dice) -> Pair:
    """When will she read the book? Wann wird sie das Buch lesen?"""
    clause = action(dice, tenses=ASKED, timed=False, deniable=False)
    return sentence(question(clause, ("when", "wann")), "?")


def where(dice: Dice) -> Pair:
    """Where does she read the book? Wo liest sie das Buch?"""
    clause = action(dice, tenses=ASKED, predicates=actions.PLACELESS, placed=False, deniable=False)
    return sentence(question(clause, ("where", "wo")), "?")


def why(dice: Dice) -> Pair:
    """Why does she read the book? Warum liest sie das Buch?"""
    return sentence(question(action(dice, tenses=ASKED), ("why", "warum")), "?")


def who(dice: Dice) -> Pair:
    """Who has bought the old book? Wer hat das alte Buch gekauft?"""
    return sentence(statement(action(dice, WHO)), "?")


def how(dice: Dice) -> Pair:
    """How much does the red book cost? How old is Anna? How many pages does the book have?"""
    throw = dice.random()
    if throw < 0.4:
        clause, word = facts.cost(dice), ("how much", "wie viel")
    elif throw < 0.7:
        clause, word = facts.age(dice), ("how old", "wie alt")
    else:
        clause, english, german = facts.amount(dice)
        word = (f"how many {english}", f"wie viele {german}")
    return sentence(question(clause._replace(tail="", middle=""), word), "?")


def _thinking(dice: Dice, verb: verbs.Verb, denied: bool = False) -> Clause:
    """Somebody thinks, or does not think: the clause that another depends on."""
    who = dice.pick(inflection.PRONOUNS) if dice.chance(0.6) else phrases.subject(dice)
    adverb, nicht = ("not", "nicht") if denied and who.kind != "quantity" else ("", "")
    return Clause(who, conjugate(verb, "present", who.person), adverb, "", "", nicht, NO_TIME)


def reported(dice: Dice) -> Pair:
    """I know that she reads the book. Ich weiß, dass sie das Buch liest."""
    verb = dice.pick([verbs.THINK, verbs.HOPE, verbs.SAY, verbs.KNOW])
    main = _thinking(dice, verb, denied=dice.chance(0.2) and verb != verbs.HOPE)
    asks = dice.chance(0.2)
    english, german = question(main) if asks else statement(main)
    that, dass = subordinate(_anything(dice))
    return sentence((f"{english} that {that}", f"{german}, dass {dass}"), "?" if asks else ".")


def asked(dice: Dice) -> Pair:
    """He does not know whether she reads the book. Er weiß nicht, ob sie das Buch liest."""
    knows = dice.chance(0.6)
    main = _thinking(dice, verbs.KNOW if knows else verbs.ASK, denied=knows)
    english, german = statement(main)
    if dice.chance(0.5):
        word, wort = "whether", "ob"
        clause = _anything(dice)
    else:
        word, wort = dice.pick([("why", "warum"), ("when", "wann")])
        clause = action(dice, tenses=ASKED, timed=False, deniable=False)
    asked, gefragt = subordinate(clause)
    return sentence((f"{english} {word} {asked}", f"{german}, {wort} {gefragt}"))


REASONS = [("because", "weil"), ("although", "obwohl")]
CONDITIONS = [("if", "wenn"), ("before", "bevor"), ("as soon as", "sobald"), ("while", "während")]
WHATEVER_THE_WEATHER = [("if", "wenn"), ("while", "während"), *REASONS]
FORESEEN = ["present", "present", "will", "can", "want to", "have to"]
IT = Phrase("it", "it", ("es", "es", "ihm"), 2, "pronoun", "n")
SUN = Phrase("the sun", "the sun", ("die Sonne", "die Sonne", "der Sonne"), 2, "definite", "f")
WEATHER = [
    Clause(what, Conjugated(english, "", "", german, "", german), "", "", "", "", NO_TIME)
    for what, english, german in [
        (IT, "is raining", "regnet"),
        (IT, "is snowing", "schneit"),
        (SUN, "is shining", "scheint"),
    ]
]


def _background(dice: Dice) -> tuple[Pair, Clause, Clause]:
    """A conjunction, the clause that it opens, and what happens then."""
    if dice.chance(0.5):
        return dice.pick(REASONS), _anything(dice), _brief(dice, UNTIMED)
    main = action(dice, tenses=FORESEEN, timed=False)
    if dice.chance(0.3):
        return dice.pick(WHATEVER_THE_WEATHER), dice.pick(WEATHER), main
    return dice.pick(CONDITIONS), _brief(dice, PLAIN), main


def background_last(dice: Dice) -> Pair:
    """She stays in the house because it is raining. Sie bleibt im Haus, weil es regnet."""
    (word, wort), clause, main = _background(dice)
    (why, warum), (english, german) = subordinate(clause), statement(main)
    return sentence((f"{english} {word} {why}", f"{german}, {wort} {warum}"))


def background_first(dice: Dice) -> Pair:
    """If it is raining, she reads. Wenn es regnet, liest sie: the clause counts as first."""
    (word, wort), clause, main = _background(dice)
    (why, warum), (english, german) = subordinate(clause), inverted(main)
    return sentence((f"{word} {why}, {english}", f"{wort} {warum}, {german}"))


def coordinated(dice: Dice) -> Pair:
    """Anna reads the book, but Peter sleeps: neither und nor aber moves a verb."""
    word, wort = dice.pick([(" and", " und"), (", but", ", aber")])
    one, other = statement(_brief(dice, UNTIMED)), statement(_brief(dice, UNTIMED))
    return sentence((f"{one[0]}{word} {other[0]}", f"{one[1]}{wort} {other[1]}"))


RELATIVE = {"m": "der", "f": "die", "n": "das", "p": "die"}
SINGLED_OUT = [inflection.THE] * 3 + [inflection.A, inflection.THIS]
MEETING = [verb for verb in verbs.TRANSITIVE if "person" in verb.objects]


def _person_who(dice: Dice) -> tuple[Phrase, Pair]:
    """The old man, and the clause that says which: who lives in the village."""
    plural = dice.chance(0.25)
    somebody = noun_phrase(
        dice.pick(SINGLED_OUT[:3] if plural else SINGLED_OUT),
        phrases.adjective(dice, "person"),
        dice.pick(NOUNS["person"]),
        plural,
    )
    person = 4 if plural else 2
    relative = Phrase("who", "whom", (RELATIVE[somebody.gender],), person, "definite", "")
    return somebody, subordinate(action(dice, relative))


def relative(dice: Dice) -> Pair:
    """I know the man who has bought the book. Ich kenne den Mann, der das Buch gekauft hat."""
    somebody, (which, welcher) = _person_who(dice)
    verb = verbs.KNOW_SOMEBODY if dice.chance(0.3) else dice.pick(MEETING)
    subject = phrases.subject(dice)
    tense = "present" if verb is verbs.KNOW_SOMEBODY else dice.pick(["present", "perfect", "will"])
    conjugated = conjugate(verb, tense, subject.person)
    tail = spaced(verb.particle, somebody.english)
    main = Clause(subject, conjugated, "", tail, "", somebody.german[1], NO_TIME)
    english, german = statement(main)
    return sentence((f"{english} {which}", f"{german}, {welcher}"))


def relative_subject(dice: Dice) -> Pair:
    """The man who called me is very kind. Der Mann, der mich angerufen hat, ist sehr nett."""
    somebody, (which, welcher) = _person_who(dice)
    name, nominative = somebody.english, somebody.german[0]
    english, german = statement(facts.described(dice, "person", somebody)._replace(time=NO_TIME))
    return sentence(
        (
            f"{name} {which}{english.removeprefix(name)}",
            f"{nominative}, {welcher},{german.removeprefix(nominative)}",
        )
    )


JUDGEMENTS = [
    ("important", "wichtig"),
    ("easy", "leicht"),
    ("difficult", "schwierig"),
    ("possible", "möglich"),
]


def purpose(dice: Dice) -> Pair:
    """She goes to the shop in order to buy bread. Sie geht zum Geschäft, um Brot zu kaufen."""
    who = phrases.subject(dice)
    deeds = actions.OBJECTIVE
    aim = action(dice, who, tenses=PLAIN, predicates=deeds, timed=False, deniable=False)
    main = action(dice, who, predicates=[actions.moving], deniable=False)
    (english, german), (to_do, zu_tun) = statement(main), infinitive(aim)
    return sentence((f"{english} in order {to_do}", f"{german}, um {zu_tun}"))


def attempt(dice: Dice) -> Pair:
    """She tries to read the book, ... das Buch zu lesen. It is important to call Anna."""
    throw = dice.random()
    who = phrases.subject(dice)
    if throw < 0.6:
        verb, tail, middle = dice.pick([verbs.TRY, verbs.HOPE]), "", ""
    else:
        verb, tail, middle = facts.HAVE, "no time", "keine Zeit"
    main = Clause(who, conjugate(verb, "present", who.person), "", tail, "", middle, NO_TIME)
    english, german = statement(main)
    if throw > 0.8:
        adjective, adjektiv = dice.pick(JUDGEMENTS)
        english, german = f"it is {adjective}", f"es ist {adjektiv}"
        who = IT
    aim = action(dice, who, tenses=PLAIN, deniable=False)
    to_do, zu_tun = infinitive(aim)
    return sentence((f"{english} {to_do}", f"{german}, {zu_tun}"))


def amount(dice: Dice) -> Pair:
    """The village has two thousand and five inhabitants."""
    return sentence(statement(facts.amount(dice)[0]))


def there_is(dice: Dice) -> Pair:
    """In the kitchen there is a small dog. In der Küche gibt es einen kleinen Hund."""
    where, wo = phrases.place(dice, ["in"])
    category = dice.pick(["animal", "thing", "food", "text", "container"])
    what = phrases.noun(dice, category)
    while what.kind != "indefinite":
        what = phrases.noun(dice, category)
    be = "are" if what.person == 4 else "is"
    return sentence((f"{where} there {be} {what.english}", f"{wo} gibt es {what.german[1]}"))


def arithmetic(dice: Dice) -> Pair:
    """Twenty-one plus seven is twenty-eight."""
    one, other = facts.number(dice, 1000), facts.number(dice, 100)
    if one > other and dice.chance(0.5):
        numbers, sign = (one, other, one - other), "minus"
    else:
        numbers, sign = (one, other, one + other), "plus"
    a, b, c = map(english_number, numbers)
    x, y, z = map(german_number, numbers)
    return sentence((f"{a} {sign} {b} is {c}", f"{x} {sign} {y} ist {z}"))


def clock(dice: Dice) -> Pair:
    """It is half past three. Es ist halb vier."""
    english, german = dice.pick(phrases.CLOCK)
    return sentence((f"it is {english}", f"es ist {german}"))


CALENDAR = dates()
TODAY = [("today is", "heute ist"), ("tomorrow is", "morgen ist"), ("yesterday was", "gestern war")]
BIRTHDAY = Noun("birthday", "", "Geburtstag", "Geburtstages", "", "m")


def calendar(dice: Dice) -> Pair:
    """Today is Monday, the third of May. Heute ist Montag, der dritte Mai."""
    (today, heute), (day, tag) = dice.pick(TODAY), dice.pick(list(DAYS.items()))
    english, nominative, _ = dice.pick(CALENDAR)
    return sentence((f"{today} {day}, {english}", f"{heute} {tag}, der {nominative}"))


def birthday(dice: Dice) -> Pair:
    """The old man's birthday is on the third of May. Der Geburtstag des alten Mannes ist ..."""
    if dice.chance(0.3):
        what = noun_phrase(dice.pick([*inflection.POSSESSIVES, *inflection.OWNERS]), None, BIRTHDAY)
    else:
        what = inflection.owned(phrases.holder(dice), None, BIRTHDAY)
    english, german = dice.pick(phrases.DATES)
    return sentence((f"{what.english} is {english}", f"{what.german[0]} ist {german}"))


Construction = Callable[[Dice], Pair]

# The share of each construction, in percent or nearly so.
CONSTRUCTIONS: dict[Construction, int] = {
    simple: 30,
    factual: 10,
    yes_or_no: 7,
    when: 2,
    where: 2,
    why: 2,
    who: 3,
    how: 2,
    reported: 10,
    asked: 4,
    background_last: 4,
    background_first: 5,
    coordinated: 2,
    relative: 4,
    relative_subject: 2,
    purpose: 2,
    attempt: 3,
    amount: 2,
    there_is: 2,
    arithmetic: 1,
    clock: 1,
    calendar: 1,
    birthday: 1,
}
