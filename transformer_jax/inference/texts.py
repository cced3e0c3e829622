# SPDX-License-Identifier: Apache-2.0
"""From the ids that a search found to text: one line, which begins with what the user gave."""

import re
from collections.abc import Sequence

from transformer_jax.data.batch import EOS
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.inference.encoding import Prefix
from transformer_jax.inference.words import SPACE, Words, words_of_ids, words_of_text

LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # all that str.splitlines knows


def texts_of(
    vocabulary: Vocabulary, ids: Sequence[list[int]], prefixes: Sequence[Prefix]
) -> list[str]:
    """The text of each translation, EOS at its end, which begins with its prefix."""
    rests = [_rest(found, prefix) for found, prefix in zip(ids, prefixes, strict=True)]
    return [
        LINE_BREAKS.sub(" ", prefix.text + _gap(vocabulary, prefix, rest) + text)
        for prefix, rest, text in zip(prefixes, rests, vocabulary.decode(rests), strict=True)
    ]


def words_of(vocabulary: Vocabulary, ids: list[int], prefix: Prefix) -> Words:
    """The words of each token but EOS in the text that `texts_of` makes of them."""
    rest = _rest(ids, prefix)
    words = words_of_ids(rest[:-1], vocabulary.decode)
    if not prefix.text:
        return words
    [text] = vocabulary.decode([rest])
    goes_on = not (_gap(vocabulary, prefix, rest) + text)[:1].isspace()  # the prefix's last word
    before = len(prefix.text.split()) - goes_on
    return words_of_text(prefix.text, vocabulary.split_targets) + [
        tuple(before + number for number in each) for each in words
    ]


def _rest(ids: list[int], prefix: Prefix) -> list[int]:
    """What is not there as text already."""
    return ids[len(prefix.ids) :] if prefix.text else ids


def _gap(vocabulary: Vocabulary, prefix: Prefix, rest: list[int]) -> str:
    """A space, if what follows the prefix begins a word."""
    if not prefix.text or rest[0] == EOS:
        return ""
    last, first = vocabulary.pieces_of([prefix.ids[-1], rest[0]])
    return " " * (first.startswith(SPACE) or last.endswith(SPACE))
