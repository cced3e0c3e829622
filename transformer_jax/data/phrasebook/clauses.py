# SPDX-License-Identifier: Apache-2.0
"""A clause, and the orders in which the two languages say it.

English keeps subject, verb, object. German stretches a frame over the clause: the finite verb comes
second in a statement and first in a question, whatever stands in front; participles, infinitives
and prefixes come last. In a subordinate clause the finite verb joins them at the end.

    first    finite  subject  pronoun  time     middle            end
    sie      hat     -        mir      gestern  das Buch nicht    gegeben
    gestern  hat     sie      mir      -        das Buch nicht    gegeben
    (dass)   -       sie      mir      gestern  das Buch nicht    gegeben hat
"""

from typing import NamedTuple

from transformer_jax.data.phrasebook.inflection import Conjugated, Phrase

Pair = tuple[str, str]


class Clause(NamedTuple):
    """What a clause says, in both languages, before it is put in order.

    `adverb` (not, already) goes between the English helper and its verb; its German is in
    `middle`, with all objects and places but a `pronoun`, which moves to the front.
    """

    subject: Phrase
    verb: Conjugated
    adverb: str
    tail: str
    pronoun: str
    middle: str
    time: Pair


NO_TIME = ("", "")


def spaced(*parts: str) -> str:
    """The parts that are there, with a space between."""
    return " ".join(filter(None, parts))


def sentence(pair: Pair, mark: str = ".") -> Pair:
    """Capital letters and a full stop."""
    english, german = pair
    return english[0].upper() + english[1:] + mark, german[0].upper() + german[1:] + mark


def _english_predicate(clause: Clause) -> str:
    verb = clause.verb
    if not clause.adverb:
        return verb.plain
    if verb.helper == "can" and clause.adverb == "not":
        return f"cannot {verb.main}"
    return spaced(verb.helper, clause.adverb, verb.main)


def _english(clause: Clause, time: str) -> str:
    return spaced(clause.subject.english, _english_predicate(clause), clause.tail, time)


def statement(clause: Clause) -> Pair:
    """She has read the book, sie hat das Buch gelesen."""
    verb, time = clause.verb, clause.time
    subject = clause.subject.german[0]
    german = spaced(subject, verb.finite, clause.pronoun, time[1], clause.middle, verb.end)
    return _english(clause, time[0]), german


def inverted(clause: Clause) -> Pair:
    """German with its verb first, as after anything that stands in front; English as ever."""
    verb, time = clause.verb, clause.time
    subject = clause.subject.german[0]
    german = spaced(verb.finite, subject, clause.pronoun, time[1], clause.middle, verb.end)
    return _english(clause, time[0]), german


def fronted(clause: Clause) -> Pair:
    """Tomorrow she will read the book, morgen wird sie das Buch lesen."""
    english, german = inverted(clause._replace(time=NO_TIME))
    return f"{clause.time[0]} {english}", f"{clause.time[1]} {german}"


def question(clause: Clause, word: Pair = NO_TIME) -> Pair:
    """When does she read the book, wann liest sie das Buch; without the word, yes or no."""
    verb = clause.verb
    adverb = clause.adverb
    english = spaced(
        word[0], verb.helper, clause.subject.english, adverb, verb.main, clause.tail, clause.time[0]
    )
    return english, spaced(word[1], inverted(clause)[1])


def subordinate(clause: Clause) -> Pair:
    """That she has read the book, dass sie das Buch gelesen hat."""
    time = clause.time
    subject = clause.subject.german[0]
    german = spaced(subject, clause.pronoun, time[1], clause.middle, clause.verb.final)
    return _english(clause, time[0]), german


def infinitive(clause: Clause) -> Pair:
    """To read the book, das Buch zu lesen. The clause is in the present and affirmative."""
    time = clause.time
    english = spaced("to", clause.verb.main, clause.tail, time[0])
    return english, spaced(clause.pronoun, time[1], clause.middle, clause.verb.zu)
