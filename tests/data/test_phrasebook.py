# SPDX-License-Identifier: Apache-2.0
"""The phrasebook: German as a grammar book has it, and splits that one can measure with."""

import hashlib
import os
import re
import subprocess
import sys

import pytest

from transformer_jax.data import phrasebook
from transformer_jax.data.phrasebook import clauses, inflection, numerals, sentences, verbs
from transformer_jax.data.phrasebook.clauses import NO_TIME, Clause
from transformer_jax.data.phrasebook.nouns import ADJECTIVES, NOUNS
from transformer_jax.data.phrasebook.phrases import CLOCK, Dice

SPLITS = ("train", "validation", "test")
TABLES = [table for name, table in vars(verbs).items() if name.isupper() and name != "GROUPS"]
VERBS = {
    (verb.english, verb.particle): verb
    for table in TABLES
    for verb in (table if isinstance(table, list) else [table])
    if isinstance(verb, verbs.Verb)
}
ICH, DU, ER, SIE, WIR, THEY = inflection.PRONOUNS
DETERMINERS = {
    "the": inflection.THE,
    "a": inflection.A,
    "this": inflection.THIS,
    "every": inflection.EVERY,
    "all": inflection.ALL,
    "some": inflection.SOME,
    "many": inflection.MANY,
    "": inflection.BARE,
    "three": inflection.number_determiner(3),
    "the two": inflection.definite_number(2),
    **{owner.english: owner for owner in [*inflection.POSSESSIVES, *inflection.OWNERS]},
}


def phrase(determiner, adjective, noun, plural=False):
    """A noun phrase, its words given in English; the noun always in the singular."""
    words = [word for nouns in NOUNS.values() for word in nouns if word.english == noun]
    qualities = [word for group in ADJECTIVES.values() for word in group]
    quality = next((word for word in qualities if word.english == adjective), None)
    return inflection.noun_phrase(DETERMINERS[determiner], quality, words[0], plural)


@pytest.mark.parametrize(
    ("words", "english", "nominative", "accusative", "dative"),
    [
        # After der: weak.
        (("the", "old", "man"), "the old man", "der alte Mann", "den alten Mann", "dem alten Mann"),
        (("the", "old", "woman"), "the old woman", "die alte Frau", "die alte Frau", "der alten Frau"),
        (("the", "red", "car"), "the red car", "das rote Auto", "das rote Auto", "dem roten Auto"),
        (("the", "old", "man", True), "the old men", "die alten Männer", "die alten Männer", "den alten Männern"),
        (("this", "dark", "kitchen"), "this dark kitchen", "diese dunkle Küche", "diese dunkle Küche", "dieser dunklen Küche"),
        (("every", "small", "child"), "every small child", "jedes kleine Kind", "jedes kleine Kind", "jedem kleinen Kind"),
        (("all", "new", "book", True), "all new books", "alle neuen Bücher", "alle neuen Bücher", "allen neuen Büchern"),
        (("the two", "red", "apple", True), "the two red apples", "die zwei roten Äpfel", "die zwei roten Äpfel", "den zwei roten Äpfeln"),
        # After ein and its like: mixed.
        (("a", "expensive", "hat"), "an expensive hat", "ein teurer Hut", "einen teuren Hut", "einem teuren Hut"),
        (("a", "interesting", "book"), "an interesting book", "ein interessantes Buch", "ein interessantes Buch", "einem interessanten Buch"),
        (("my", "tired", "sister"), "my tired sister", "meine müde Schwester", "meine müde Schwester", "meiner müden Schwester"),
        (("our", "new", "computer", True), "our new computers", "unsere neuen Computer", "unsere neuen Computer", "unseren neuen Computern"),
        # After nothing, or what shows no case: strong.
        (("", "cold", "water"), "cold water", "kaltes Wasser", "kaltes Wasser", "kaltem Wasser"),
        (("", "hot", "coffee"), "hot coffee", "heißer Kaffee", "heißen Kaffee", "heißem Kaffee"),
        (("", "fresh", "milk"), "fresh milk", "frische Milch", "frische Milch", "frischer Milch"),
        (("some", "red", "flower", True), "some red flowers", "einige rote Blumen", "einige rote Blumen", "einigen roten Blumen"),
        (("three", "black", "dog", True), "three black dogs", "drei schwarze Hunde", "drei schwarze Hunde", "drei schwarzen Hunden"),
        (("Anna's", "small", "dog"), "Anna's small dog", "Annas kleiner Hund", "Annas kleinen Hund", "Annas kleinem Hund"),
        # Weak nouns, and plurals in -s and -n.
        (("the", None, "boy"), "the boy", "der Junge", "den Jungen", "dem Jungen"),
        (("a", "kind", "neighbour"), "a kind neighbour", "ein netter Nachbar", "einen netten Nachbarn", "einem netten Nachbarn"),
        (("many", "new", "car", True), "many new cars", "viele neue Autos", "viele neue Autos", "vielen neuen Autos"),
        (("your", None, "girl", True), "your girls", "deine Mädchen", "deine Mädchen", "deinen Mädchen"),
    ],
)  # fmt: skip
def test_articles_and_adjectives_agree(words, english, nominative, accusative, dative):
    made = phrase(*words)
    assert made.english == english
    assert made.german[:3] == (nominative, accusative, dative)


def test_possession_is_a_genitive():
    man, boy = phrase("the", "old", "man"), phrase("this", None, "boy")
    small = next(word for word in ADJECTIVES["animal"] if word.english == "small")
    dog, cat = NOUNS["animal"][:2]
    made = inflection.owned(man, small, dog)
    assert made.english == "the old man's small dog"
    assert made.german[1] == "den kleinen Hund des alten Mannes"
    assert inflection.owned(boy, None, cat).german[2] == "der Katze dieses Jungen"


@pytest.mark.parametrize(
    ("preposition", "words", "german"),
    [
        ("in", ("the", "old", "garden"), "im alten Garten"),
        ("into", ("the", "old", "garden"), "in den alten Garten"),
        ("into", ("the", "big", "house"), "ins große Haus"),
        ("into", ("the", "old", "house", True), "in die alten Häuser"),
        ("in", ("a", "small", "town"), "in einer kleinen Stadt"),
        ("to", ("the", None, "school"), "zur Schule"),
        ("to", ("the", "modern", "museum"), "zum modernen Museum"),
        ("behind", ("the", None, "church", True), "hinter den Kirchen"),
        ("with", ("her", None, "brother"), "mit ihrem Bruder"),
        ("without", ("her", None, "brother"), "ohne ihren Bruder"),
    ],
)
def test_prepositions_govern_a_case(preposition, words, german):
    assert inflection.prepositional(preposition, phrase(*words))[1] == german


THE_BOOK = phrase("the", "old", "book")
YESTERDAY, TOMORROW = ("yesterday", "gestern"), ("tomorrow", "morgen")
IN_THE_GARDEN = ("in the garden", "im Garten")


def clause(subject, tense, verb, obj=None, *, case=1, time=NO_TIME, nicht=False, place=NO_TIME):
    """A clause of given parts; a verb with a particle is written `pick up`."""
    key = next(key for key in VERBS if clauses.spaced(*key) == verb)
    conjugated = inflection.conjugate(VERBS[key], tense, subject.person)
    particle = key[1]
    if obj is None:
        english, pronoun, german = particle, "", ""
    elif obj.kind == "pronoun":
        english, pronoun, german = f"{obj.english_object} {particle}".strip(), obj.german[case], ""
    else:
        english, pronoun, german = f"{particle} {obj.english}".strip(), "", obj.german[case]
        if nicht and obj.kind == "indefinite":
            german, nicht = obj.negated[case], None
    middle = clauses.spaced(german, "nicht" if nicht else "", place[1])
    adverb = "" if nicht is False else "not"
    tail = clauses.spaced(english, place[0])
    return Clause(subject, conjugated, adverb, tail, pronoun, middle, time)


@pytest.mark.parametrize(
    ("order", "parts", "english", "german"),
    [
        # The perfect frames the clause; sein with verbs of motion.
        ("statement", (ICH, "perfect", "buy", THE_BOOK), "I have bought the old book", "ich habe das alte Buch gekauft"),
        ("statement", (SIE, "perfect", "go", None, {"place": ("into the garden", "in den Garten")}), "she has gone into the garden", "sie ist in den Garten gegangen"),
        ("statement", (WIR, "past", "see", ER, {"time": YESTERDAY}), "we saw him yesterday", "wir haben ihn gestern gesehen"),
        # A time in front takes the subject's place.
        ("fronted", (SIE, "past", "read", THE_BOOK, {"time": YESTERDAY}), "yesterday she read the old book", "gestern hat sie das alte Buch gelesen"),
        ("fronted", (DU, "will", "call", ER, {"time": TOMORROW}), "tomorrow you will call him", "morgen wirst du ihn anrufen"),
        ("fronted", (ER, "want to", "get up", None, {"time": TOMORROW}), "tomorrow he wants to get up", "morgen will er aufstehen"),
        # Separable verbs.
        ("statement", (ER, "present", "pick up", phrase("the", None, "boy")), "he picks up the boy", "er holt den Jungen ab"),
        ("statement", (ER, "present", "pick up", SIE), "he picks her up", "er holt sie ab"),
        ("subordinate", (ER, "present", "pick up", SIE), "he picks her up", "er sie abholt"),
        ("infinitive", (ER, "present", "call", phrase("my", None, "aunt")), "to call my aunt", "meine Tante anzurufen"),
        # Subordinate clauses end with the finite verb.
        ("subordinate", (SIE, "present", "read", THE_BOOK), "she reads the old book", "sie das alte Buch liest"),
        ("subordinate", (SIE, "perfect", "read", THE_BOOK), "she has read the old book", "sie das alte Buch gelesen hat"),
        ("subordinate", (THEY, "had to", "wait", None, {"time": YESTERDAY, "place": IN_THE_GARDEN}), "they had to wait in the garden yesterday", "sie gestern im Garten warten mussten"),
        # Modal verbs.
        ("statement", (WIR, "can", "open", phrase("the", None, "door")), "we can open the door", "wir können die Tür aufmachen"),
        ("statement", (DU, "would like to", "eat", phrase("a", "red", "apple")), "you would like to eat a red apple", "du möchtest einen roten Apfel essen"),
        # Negation: nicht after what is definite and before a place, kein for ein or nothing.
        ("statement", (ER, "present", "buy", THE_BOOK, {"nicht": True}), "he does not buy the old book", "er kauft das alte Buch nicht"),
        ("statement", (ER, "perfect", "buy", phrase("a", "new", "hat"), {"nicht": True}), "he has not bought a new hat", "er hat keinen neuen Hut gekauft"),
        ("statement", (ICH, "present", "drink", phrase("", None, "milk"), {"nicht": True}), "I do not drink milk", "ich trinke keine Milch"),
        ("statement", (ICH, "can", "sleep", None, {"nicht": True, "place": IN_THE_GARDEN}), "I cannot sleep in the garden", "ich kann nicht im Garten schlafen"),
        # Questions.
        ("question", (DU, "present", "read", THE_BOOK), "do you read the old book", "liest du das alte Buch"),
        ("question", (SIE, "perfect", "invite", ICH), "has she invited me", "hat sie mich eingeladen"),
        ("question", (THEY, "past", "come back", None, {"time": YESTERDAY}), "did they come back yesterday", "sind sie gestern zurückgekommen"),
        # The dative.
        ("statement", (ICH, "perfect", "help", phrase("the", "poor", "neighbour"), {"case": 2}), "I have helped the poor neighbour", "ich habe dem armen Nachbarn geholfen"),
        ("statement", (DU, "present", "trust", ICH, {"case": 2}), "you trust me", "du vertraust mir"),
    ],
)  # fmt: skip
def test_word_order(order, parts, english, german):
    *parts, options = parts if isinstance(parts[-1], dict) else (*parts, {})
    assert getattr(clauses, order)(clause(*parts, **options)) == (english, german)


@pytest.mark.parametrize(
    ("n", "english", "german"),
    [
        (1, "one", "eins"),
        (16, "sixteen", "sechzehn"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (101, "one hundred and one", "einhunderteins"),
        (276, "two hundred and seventy-six", "zweihundertsechsundsiebzig"),
        (1005, "one thousand and five", "eintausendfünf"),
        (2341, "two thousand three hundred and forty-one", "zweitausenddreihunderteinundvierzig"),
    ],
)
def test_numbers(n, english, german):
    assert (numerals.english_number(n), numerals.german_number(n)) == (english, german)


def test_dates_hours_prices_years():
    dates = numerals.dates()
    assert len(dates) == 366
    assert ("the third of May", "dritte Mai", "dritten Mai") in dates
    assert ("the twenty-first of March", "einundzwanzigste März", "einundzwanzigsten März") in dates
    assert ("the seventh of July", "siebte Juli", "siebten Juli") in dates
    hours = dict(CLOCK)
    assert len(hours) == 144
    assert hours["half past three"] == "halb vier"
    assert hours["half past twelve"] == "halb eins"
    assert hours["a quarter past four"] == "Viertel nach vier"
    assert hours["ten to one"] == "zehn vor eins"
    assert hours["one o'clock"] == "ein Uhr"
    assert numerals.price(3, 50) == ("three euros fifty", "drei Euro fünfzig")
    assert numerals.price(1, 20) == ("one euro twenty", "einen Euro zwanzig")
    assert numerals.year(1984) == ("nineteen eighty-four", "neunzehnhundertvierundachtzig")


def test_the_splits_have_their_sizes_and_share_no_sentence():
    train, validation, test = map(phrasebook.pairs, SPLITS)
    assert (len(train), len(validation), len(test)) == (200_000, 500, 1000)
    everything = [*train, *validation, *test]
    assert len({english for english, _ in everything}) == len(everything)
    assert len({german for _, german in everything}) == len(everything)


def test_a_sentence_has_one_translation_either_way():
    """A second throw of the dice meets many of the first's sentences again."""
    translations = dict(pair for split in SPLITS for pair in phrasebook.pairs(split))
    backwards = {german: english for english, german in translations.items()}
    dice, met = Dice(11), 0
    for make in sentences.CONSTRUCTIONS:
        for _ in range(3000):
            english, german = make(dice)
            met += english in translations
            assert translations.setdefault(english, german) == german
            assert backwards.setdefault(german, english) == english
    assert met > 5000


def test_training_shows_every_word():
    words = {word for pair in phrasebook.pairs("train") for side in pair for word in side.split()}
    for split in ("validation", "test"):
        for english, german in phrasebook.pairs(split):
            assert words.issuperset((english + " " + german).split())


def test_two_processes_agree():
    program = (
        "import hashlib; from transformer_jax.data import phrasebook as p;"
        f"print(hashlib.sha256(repr([p.pairs(s) for s in {SPLITS}]).encode()).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
        text=True,
    )
    here = hashlib.sha256(repr([phrasebook.pairs(split) for split in SPLITS]).encode())
    assert there.stdout.strip() == here.hexdigest()


def test_sentences_are_written_as_sentences():
    for split in SPLITS:
        for pair in phrasebook.pairs(split):
            for side in pair:
                assert side[0].isupper() and side[-1] in ".?" and "  " not in side, side
                assert not re.search(r" [,.?]|^ | $|, ,", side), side
            assert pair[0][-1] == pair[1][-1], pair


FINITE = {
    prefix + form
    for verb in VERBS.values()
    for form in verb.present
    for prefix in ("", verb.prefix)
}
FINITE |= {
    *verbs.KNOW.present,
    *inflection.HABEN,
    *inflection.SEIN,
    *inflection.WAR,
    *inflection.WURDE,
}
for forms in [*inflection.HELPERS.values(), *inflection.SUPPORTED.values()]:
    FINITE |= set(forms)
FINITE |= {"regnet", "schneit", "scheint"}


def test_dass_clauses_end_with_a_finite_verb():
    """After dass nothing follows, so the sentence's last word is the finite verb."""
    reported = [german for _, german in phrasebook.pairs("train") if ", dass " in german]
    assert len(reported) > 10_000
    for german in reported:
        assert german[:-1].split()[-1] in FINITE, german


@pytest.mark.parametrize(
    ("construction", "english", "german"),
    [
        ("yes_or_no", r".*\?", r"{FINITE} .*\?"),
        ("when", r"When (do|does|did|will|can|may|should|would) .*", r"Wann {finite} .*"),
        ("where", r"Where .*", r"Wo {finite} .*"),
        ("who", r"Who .*", r"Wer {finite}\b.*"),
        ("how", r"How (much|old|many \w+) .*", r"Wie (viel|alt|viele \w+) {finite} .*"),
        ("reported", r".* that .*", r".*, dass .* {finite}."),
        ("asked", r".* (whether|why|when) .*", r".*, (ob|warum|wann) .* {finite}."),
        ("background_last", r".*", r".*, (weil|obwohl|wenn|bevor|sobald|während) .* {finite}\."),
        ("background_first", r".*, .*", r"(Weil|Obwohl|Wenn|Bevor|Sobald|Während) .* {finite}, {finite} .*"),
        ("relative", r".* who .*", r"[^,]*, (der|die|das) [^,]* {finite}\."),
        ("relative_subject", r".* who .*", r"[^,]*, (der|die|das) [^,]* {finite}, {finite} .*"),
        ("purpose", r".* in order to .*", r".*, um .*(zu \w+en|\w+zu\w+en)\."),
        ("attempt", r".* to .*", r".*, .*(zu \w+en|\w+zu\w+en)\."),
        ("there_is", r"(In .*) there (is|are) .*", r"(In|Im) .* gibt es .*"),
        ("calendar", r".* (is|was) \w+day, the \w.* of \w+\.", r".* (ist|war) \w+, der \w+te \w+\."),
        ("birthday", r".* birthday is on the .*", r".*Geburtstag.* ist am \w+ten \w+\."),
    ],
)  # fmt: skip
def test_constructions_put_the_verb_where_german_does(construction, english, german):
    finite = "(" + "|".join(FINITE) + ")"
    german = german.replace("{finite}", finite).replace("{FINITE}", f"(?i:{finite})")
    dice = Dice(3)
    for _ in range(200):
        pair = getattr(sentences, construction)(dice)
        assert re.fullmatch(english, pair[0]), pair
        assert re.fullmatch(german, pair[1]), pair


def test_adjectives_after_a_dative_article_end_in_en():
    """Whatever the gender and number: im alten Garten, mit der alten Frau, zu den alten Häusern."""
    adjectives = re.compile(
        r"\b(?:im|zum|zur|dem|einem|einer|(?:mit|zu|vor) der) ([a-zäöüß]+) [A-Z]"
    )
    found = [
        (word, german)
        for _, german in phrasebook.pairs("train")
        for word in adjectives.findall(german)
    ]
    assert len(found) > 10_000
    assert not [german for word, german in found if not word.endswith("en")]
