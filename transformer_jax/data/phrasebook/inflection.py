# SPDX-License-Identifier: Apache-2.0
"""How German words change: articles and adjectives by case, gender, number; verbs by tense.

Cases are numbered: nominative 0, accusative 1, dative 2, genitive 3; genders are m f n, and p for
every plural. An adjective is strong where no article shows the case (rotes Buch), weak after one
that does (das rote Buch), and mixed after ein and its like, which show it only now and then.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from transformer_jax.data.phrasebook.nouns import NAMES, Adjective, Noun, words
from transformer_jax.data.phrasebook.numerals import english_number, german_number
from transformer_jax.data.phrasebook.verbs import Verb

NOMINATIVE, ACCUSATIVE, DATIVE, GENITIVE = range(4)

Paradigm = dict[str, list[str]]


def _paradigm(m: str, f: str, n: str, p: str) -> Paradigm:
    """The four cases of each gender; an ending starts with a hyphen."""
    rows = {"m": m, "f": f, "n": n, "p": p}
    return {gender: row.replace("-", "").split(" ") for gender, row in rows.items()}


# Case by case: nominative accusative dative genitive.
DEFINITE = _paradigm("der den dem des", "die die der der", "das das dem des", "die die den der")
DIESER = _paradigm("-er -en -em -es", "-e -e -er -er", "-es -es -em -es", "-e -e -en -er")
EIN = _paradigm("- -en -em -es", "-e -e -er -er", "- - -em -es", "-e -e -en -er")
STRONG = _paradigm("-er -en -em -en", "-e -e -er -er", "-es -es -em -en", "-e -e -en -er")
WEAK = _paradigm("-e -en -en -en", "-e -e -en -en", "-e -e -en -en", "-en -en -en -en")
MIXED = _paradigm("-er -en -en -en", "-e -e -en -en", "-es -es -en -en", "-en -en -en -en")
UNCHANGED = _paradigm("- - - -", "- - - -", "- - - -", "- - - -")


@dataclass(frozen=True, eq=False)
class Determiner:
    """What stands before a noun: its German stem and endings, and those of an adjective after it.

    The kind says how a clause with this object is negated: kein for what is indefinite, nicht
    for what is definite, not at all for a quantity (where languages differ in what is denied).
    """

    english: str
    english_plural: str
    stem: str
    endings: Paradigm
    adjective: Paradigm
    kind: str = "definite"


BARE = Determiner("", "", "", UNCHANGED, STRONG, "indefinite")
A = Determiner("a", "", "ein", EIN, MIXED, "indefinite")
NO = Determiner("no", "no", "kein", EIN, MIXED)
THE = Determiner("the", "the", "", DEFINITE, WEAK)
THIS = Determiner("this", "these", "dies", DIESER, WEAK)
EVERY = Determiner("every", "", "jed", DIESER, WEAK, "quantity")
ALL = Determiner("", "all", "all", DIESER, WEAK, "quantity")
SOME = Determiner("", "some", "einig", DIESER, STRONG, "quantity")
MANY = Determiner("", "many", "viel", DIESER, STRONG, "quantity")
POSSESSIVES = [
    Determiner(english, english, stem, EIN, MIXED)
    for english, stem in [
        ("my", "mein"),
        ("your", "dein"),
        ("his", "sein"),
        ("her", "ihr"),
        ("our", "unser"),
    ]
]
# Annas kleiner Hund: a name in the genitive shows nothing, so the adjective must.
OWNERS = [Determiner(f"{name}'s", f"{name}'s", f"{name}s", UNCHANGED, STRONG) for name in NAMES]


@cache
def number_determiner(n: int) -> Determiner:
    """Three red books, drei rote Bücher."""
    return Determiner("", english_number(n), german_number(n), UNCHANGED, STRONG, "quantity")


@cache
def definite_number(n: int) -> Determiner:
    """The three red books, die drei roten Bücher."""
    articles = {"p": [f"{article} {german_number(n)}" for article in DEFINITE["p"]]}
    return Determiner("", f"the {english_number(n)}", "", articles, WEAK)


class Phrase(NamedTuple):
    """A noun phrase: English as subject and object, German in four cases.

    `person` counts ich, du, er, wir, sie from 0. `negated` is German with kein for ein or nothing.
    """

    english: str
    english_object: str
    german: tuple[str, ...]
    person: int
    kind: str
    gender: str
    negated: tuple[str, ...] = ()


PRONOUNS = [
    Phrase("I", "me", ("ich", "mich", "mir"), 0, "pronoun", ""),
    Phrase("you", "you", ("du", "dich", "dir"), 1, "pronoun", ""),
    Phrase("he", "him", ("er", "ihn", "ihm"), 2, "pronoun", "m"),
    Phrase("she", "her", ("sie", "sie", "ihr"), 2, "pronoun", "f"),
    Phrase("we", "us", ("wir", "uns", "uns"), 3, "pronoun", ""),
    Phrase("they", "them", ("sie", "sie", "ihnen"), 4, "pronoun", "p"),
]
WHO = Phrase("who", "whom", ("wer", "wen", "wem"), 2, "pronoun", "")
PEOPLE = [Phrase(name, name, (name, name, name, f"{name}s"), 2, "definite", "") for name in NAMES]


def _spaced(*words: str) -> str:
    return " ".join(word for word in words if word)


def noun_form(noun: Noun, plural: bool, case: int) -> str:
    """The German noun itself: den Jungen, des Kindes, mit den Hunden."""
    if plural:
        needs_n = case == DATIVE and not noun.plural.endswith(("n", "s"))
        return noun.plural + ("n" if needs_n else "")
    if case == GENITIVE or (noun.weak and case != NOMINATIVE):
        return noun.genitive
    return noun.german


def _german(
    determiner: Determiner, adjective: Adjective | None, noun: Noun, plural: bool, case: int
) -> str:
    gender = "p" if plural else noun.gender
    article = determiner.stem + determiner.endings[gender][case]
    described = adjective.stem + determiner.adjective[gender][case] if adjective else ""
    return _spaced(article, described, noun_form(noun, plural, case))


@cache
def noun_phrase(
    determiner: Determiner, adjective: Adjective | None, noun: Noun, plural: bool = False
) -> Phrase:
    """A determiner, perhaps an adjective, and a noun, in all that a clause may ask of them."""
    article = determiner.english_plural if plural else determiner.english
    rest = _spaced(
        adjective.english if adjective else "", noun.english_plural if plural else noun.english
    )
    if article == "a" and rest[0] in "aeiou":
        article = "an"
    english = _spaced(article, rest)
    german = tuple(_german(determiner, adjective, noun, plural, case) for case in range(4))
    negated = german
    if determiner.kind == "indefinite":
        negated = tuple(_german(NO, adjective, noun, plural, case) for case in range(4))
    gender = "p" if plural else noun.gender
    return Phrase(english, english, german, 4 if plural else 2, determiner.kind, gender, negated)


def owned(owner: Phrase, adjective: Adjective | None, noun: Noun) -> Phrase:
    """The old man's small dog, der kleine Hund des alten Mannes."""
    bare = noun_phrase(THE, adjective, noun)
    english = f"{owner.english}'s {bare.english.removeprefix('the ')}"
    german = tuple(f"{form} {owner.german[GENITIVE]}" for form in bare.german)
    return Phrase(english, english, german, 2, "definite", noun.gender)


# English, German and the case it governs.
PREPOSITIONS = {
    "in": ("in", DATIVE),
    "in front of": ("vor", DATIVE),
    "behind": ("hinter", DATIVE),
    "next to": ("neben", DATIVE),
    "to": ("zu", DATIVE),
    "with": ("mit", DATIVE),
    "into": ("in", ACCUSATIVE),
    "for": ("für", ACCUSATIVE),
    "without": ("ohne", ACCUSATIVE),
}
CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}


def prepositional(preposition: str, phrase: Phrase) -> tuple[str, str]:
    """In the old garden, im alten Garten; into the old garden, in den alten Garten."""
    german, case = PREPOSITIONS[preposition]
    form = phrase.german[case]
    article, _, rest = form.partition(" ")
    if contracted := CONTRACTIONS.get((german, article)):
        german, form = contracted, rest
    return f"{preposition} {phrase.english_object}", f"{german} {form}"


# Of the verbs that help others: the forms for ich du er wir sie, I you he we they.
HABEN = words("habe hast hat haben haben")
SEIN = words("bin bist ist sind sind")
WAR = words("war warst war waren waren")
WURDE = words("wurde wurdest wurde wurden wurden")
AM = words("am are is are are")
WAS = words("was were was were were")

# Those that leave the other verb in the infinitive. English asks with the first word of HELPERS,
# and with do, does, did for the SUPPORTED.
HELPERS = {
    "will": words("werde wirst wird werden werden"),
    "can": words("kann kannst kann können können"),
    "may": words("darf darfst darf dürfen dürfen"),
    "should": words("sollte solltest sollte sollten sollten"),
    "would like to": words("möchte möchtest möchte möchten möchten"),
}
SUPPORTED = {
    "want to": words("will willst will wollen wollen"),
    "have to": words("muss musst muss müssen müssen"),
    "wanted to": words("wollte wolltest wollte wollten wollten"),
    "had to": words("musste musstest musste mussten mussten"),
}
_BASE = {"wanted to": "want to", "had to": "have to"}
_THIRD = {"want to": "wants to", "have to": "has to"}


class Conjugated(NamedTuple):
    """A verb in one tense and person.

    English: `plain` (buys) in a statement, `helper` + `main` (does ... buy) in a question or
    negation. German: `finite` and `end` (hat ... gekauft, kauft ... ein) embrace a main clause;
    `final` (gekauft hat, einkauft) closes a subordinate one, `zu` (einzukaufen) an infinitive one.
    """

    plain: str
    helper: str
    main: str
    finite: str
    end: str
    final: str
    zu: str = ""


def _english_forms(verb: Verb, tense: str, person: int) -> tuple[str, str, str]:
    third, base = person == 2, verb.english
    do, have = ("does", "has") if third else ("do", "have")
    if tense == "present":
        return (verb.third if third else base), do, base
    if tense == "past":
        return verb.past, "did", base
    if tense == "perfect":
        return f"{have} {verb.english_participle}", have, verb.english_participle
    if tense in HELPERS:
        helper, _, rest = tense.partition(" ")
        return f"{tense} {base}", helper, _spaced(rest, base)
    plain = _THIRD[tense] if third and tense in _THIRD else tense
    return f"{plain} {base}", "did" if tense in _BASE else do, f"{_BASE.get(tense, tense)} {base}"


def _german_forms(verb: Verb, tense: str, person: int) -> tuple[str, str, str]:
    if tense == "present":
        finite = verb.present[person]
        return finite, verb.prefix, verb.prefix + finite
    if tense in ("past", "perfect"):
        finite, end = (HABEN if verb.auxiliary == "hat" else SEIN)[person], verb.participle
    else:
        finite, end = (HELPERS | SUPPORTED)[tense][person], verb.prefix + verb.infinitive
    return finite, end, f"{end} {finite}"


@cache
def conjugate(verb: Verb, tense: str, person: int) -> Conjugated:
    """The verb in a tense: present, perfect, past or one of HELPERS and SUPPORTED.

    Spoken German says the English perfect and past alike: sie hat das Buch gekauft.
    """
    zu = f"{verb.prefix}zu{verb.infinitive}" if verb.prefix else f"zu {verb.infinitive}"
    return Conjugated(*_english_forms(verb, tense, person), *_german_forms(verb, tense, person), zu)


def be(tense: str, person: int, german: list[str], end: str = "", main: str = "") -> Conjugated:
    """To be, in the present or past, and what German makes of it: ist, war, wurde ... geboren."""
    finite = german[person]
    english = (AM if tense == "present" else WAS)[person]
    final = f"{end} {finite}" if end else finite
    return Conjugated(_spaced(english, main), english, main, finite, end, final)
