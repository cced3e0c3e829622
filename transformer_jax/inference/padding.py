# SPDX-License-Identifier: Apache-2.0
"""Sentences into a few shapes of batches, in order of length; nothing is packed."""

import dataclasses

import numpy as np
from jaxtyping import Int

from transformer_jax.data.batch import PAD, Tokens

SHORTEST = 16  # the shapes' lengths are its multiples by powers of two
FEWEST = 4  # rows of a batch, unless the sentences are too long for that


@dataclasses.dataclass(frozen=True)
class Group:
    """Sentences that are computed together."""

    members: list[int]  # the sentences' numbers
    rows: int  # of the batch; those behind the members are filled up
    length: int  # S, at least the longest member's


def group_by_length(
    lengths: list[int], batch_tokens: int, *, rows_multiple: int = 1
) -> list[Group]:
    """Every sentence in one group, in few shapes [rows, length] of about `batch_tokens` positions.

    `rows` depends on `length` alone, except that a length of which there are few sentences gets
    fewer. It is a multiple of `rows_multiple`, the number of devices that share the rows.
    """
    by_shape: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        length = SHORTEST * _power_of_two(-(-lengths[index] // SHORTEST))
        by_shape.setdefault(length, []).append(index)
    groups = []
    for length, members in by_shape.items():
        most = max(1, batch_tokens // length)
        rows = min(most, max(FEWEST, _power_of_two(len(members))))
        rows = -(-rows // rows_multiple) * rows_multiple
        groups += [
            Group(members[start : start + rows], rows, length)
            for start in range(0, len(members), rows)
        ]
    return groups


def pad(sentences: list[list[int]], rows: int, length: int) -> Tokens:
    """One sentence a row: numpy arrays [rows, length]; the rows behind are all padding."""
    ids = np.full((rows, length), PAD, np.int32)
    segments = np.zeros((rows, length), np.int32)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        segments[row, : len(sentence)] = 1
    return Tokens(ids, segments, segments * _positions(rows, length))


def pad_prefixes(starts: list[list[int]], rows: int) -> Int[np.ndarray, "B P"] | None:
    """What the rows' translations begin with, then PAD; None if none of them is told."""
    longest = max(map(len, starts))
    if not longest:
        return None
    prefix = np.full((rows, multiple_of_8(longest)), PAD, np.int32)
    for row, start in enumerate(starts):
        prefix[row, : len(start)] = start
    return prefix


def multiple_of_8(number: int) -> int:
    """The smallest that is not less; few lengths are few shapes to compile."""
    return -(-number // 8) * 8


def _positions(rows: int, length: int) -> Int[np.ndarray, "B S"]:
    return np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))


def _power_of_two(number: int) -> int:
    """The smallest that is not less than a positive number."""
    return 1 << (number - 1).bit_length()
