# SPDX-License-Identifier: Apache-2.0
"""A phrasebook of English and German sentences, made by a grammar: data without a download.

It is small enough to be learnt in minutes, and has what makes this pair of languages hard: German
moves the verb, and inflects nearly all before a noun. `nouns`, `verbs` and `numerals` are the
dictionary; `inflection` puts its words in their forms; `clauses` knows the word order; `phrases`,
`actions` and `facts` throw the dice for the parts of a clause; `sentences` joins clauses.
"""

from functools import cache

from transformer_jax.data.phrasebook.clauses import Pair
from transformer_jax.data.phrasebook.phrases import Dice
from transformer_jax.data.phrasebook.sentences import CONSTRUCTIONS

SEED = 1706
TRAIN, VALIDATION, TEST = 200_000, 500, 1000
SPARE = 1000  # held out, in case that a sentence has a word which training never shows


def _distinct_pairs(count: int) -> list[Pair]:
    """So many pairs; the grammar gives each sentence, of either language, one translation."""
    dice = Dice(SEED)
    constructions = [make for make, share in CONSTRUCTIONS.items() for _ in range(share)]
    translations: dict[str, str] = {}
    while len(translations) < count:
        english, german = dice.pick(constructions)(dice)
        translations[english] = german
    return list(translations.items())


@cache
def _splits() -> dict[str, list[Pair]]:
    """The first pairs are for training; of the next, those that have only words seen there."""
    everything = _distinct_pairs(TRAIN + VALIDATION + TEST + SPARE)
    train, held_out = everything[:TRAIN], everything[TRAIN:]
    words: set[str] = set()
    for english, german in train:
        words.update(english.split(), german.split())
    known = [pair for pair in held_out if words.issuperset(" ".join(pair).split())]
    return {
        "train": train,
        "validation": known[:VALIDATION],
        "test": known[VALIDATION : VALIDATION + TEST],
    }


def pairs(split: str) -> list[Pair]:
    """The (English, German) sentences of "train", "validation" or "test"; always the same."""
    return list(_splits()[split])
