# SPDX-License-Identifier: Apache-2.0
"""From pieces to the words of a text, which are what `str.split` makes of it, numbered from 0."""

from collections.abc import Callable, Iterable, Sequence

# For each piece the words that it stands in: one, but for rare pieces.
Words = list[tuple[int, ...]]

SPACE = "▁"  # what a sentencepiece writes for a space


def words_of_text(text: str, split: Callable[[list[str]], list[list[str]]]) -> Words:
    """The words of each piece that `split` makes of a text.

    A vocabulary may write other characters than the text has, such as 1/2 for ½. It does so word by
    word, and so the pieces of each word by itself, which may be others, have the same characters.
    """
    words = text.split()
    pieces, *by_itself = split([text, *words])
    of_characters = [
        number for number, parts in enumerate(by_itself) for _ in range(_size("".join(parts)))
    ]
    ends, end = [], 0
    for piece in pieces:
        end += _size(piece)
        ends.append(end)
    return _words(ends, of_characters)


def words_of_ids(ids: Sequence[int], decode: Callable[[list[Sequence[int]]], list[str]]) -> Words:
    """The words of each of the ids that a text was decoded from."""
    whole, *beginnings = decode([ids, *(ids[:end] for end in range(1, len(ids) + 1))])
    of_characters = [number for number, word in enumerate(whole.split()) for _ in word]
    ends = [_size(text) for text in beginnings]
    # Of the bytes of one character each but the last is decoded as one more.
    for place in range(len(ends) - 1, 0, -1):
        ends[place - 1] = min(ends[place - 1], ends[place])
    return _words(ends, of_characters)


def align_words(
    source: Words, target: Words, looked_at: Iterable[int]
) -> tuple[tuple[int, int], ...]:
    """Pairs (source word, target word), from the source piece that each target piece looked at.

    A target word is aligned to the words of all its pieces.

    Args:
      source: the words of each piece, without EOS.
      target: the same.
      looked_at: for each target piece the number of a source piece.
    """
    pairs = {
        (there, here)
        for words, place in zip(target, looked_at, strict=True)
        for here in words
        for there in source[place]
    }
    return tuple(sorted(pairs, key=lambda pair: pair[::-1]))


def _words(ends: list[int], of_characters: list[int]) -> Words:
    """`ends`: how many characters stand in each piece and those before it; `of_characters`: their words.

    A piece of spaces belongs to the word that follows.
    """
    found, start = [], 0
    for end in ends:
        inside = of_characters[start:end] or of_characters[start : start + 1] or of_characters[-1:]
        found.append(tuple(sorted(set(inside))))
        start = end
    return found


def _size(text: str) -> int:
    """Characters but spaces, of a text or of pieces."""
    return sum(not (char.isspace() or char == SPACE) for char in text)
