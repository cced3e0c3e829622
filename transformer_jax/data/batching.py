# SPDX-License-Identifier: Apache-2.0
"""Which sentences share a row, and which rows a batch: section 5.1.

Several sentences stand in one row (packing), so that few positions are padding although batches
have few shapes: a row has one of the lengths 64, 128, ... up to the longest allowed, the same on
both sides. The plan of an epoch is computed, not remembered:

    window    a fixed part of the corpus, small enough to be planned in a moment
    cell      all sentence pairs of a window with the same two lengths
    pattern   a multiset of cells that fills a row well, used as often as the cells allow
    batch     rows of one length, `batch_tokens` positions a side

Patterns depend on lengths alone, so every epoch has the same number of batches, and finding the
batch of a step needs no walk through the steps before it. Which pair of a cell stands where, and
the order of batches and windows, is drawn anew in every epoch from (seed, epoch). An epoch has
every pair exactly once; the one batch of a window that is not full is filled up with empty rows.

None of this depends on the devices that share a batch: where they do not divide its rows, empty ones
are added. A run has the same batches on any mesh.
"""

import dataclasses
import functools
import math
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np

from transformer_jax.data.batch import Batch, Tokens

_WINDOW = 2**17  # pairs that are planned together
_SHORTEST_ROW = 64  # tokens; rows of 32 leave 5.7 % of Multi30k's positions empty, these 3.2 %
_CELL = 2**31  # a cell is source length * _CELL + target length
_BLOCK = 2048  # cells that are searched at once
# How many tokens of size a token of imbalance outweighs: 0.5 fills 96.8 % of Multi30k's positions,
# 0 fills 94.3 %, 2 fills 95.9 %.
_BALANCE = 0.5


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """The pairs of one batch, by row."""

    row_length: int
    rows: list[list[int]]  # indices of pairs; an empty list is a row of padding


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of every global batch that one process reads: some of its `of` equal parts."""

    parts: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, count: int) -> list[int]:
        """The numbers of the rows, of `count` in the global batch."""
        each = count // self.of
        return [row for part in self.parts for row in range(part * each, (part + 1) * each)]


ALL = Share()  # a run of one process


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """Rows that hold pairs of the same lengths: `cells[i]` is drawn `times` times for each i."""

    row_length: int
    cells: list[int]
    times: int


class BatchPlan:
    """The batches of a corpus as a function of (seed, step)."""

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_tokens: int,
        max_length: int,
        seed: int,
        rows_multiple: int = 1,
    ):
        """A plan; nothing is computed before the first batch is asked for.

        Args:
          lengths: [n, 2], each pair's source and target tokens, none more than `max_length`.
          batch_tokens: source positions of a batch, and as many target positions.
          max_length: the longest row.
          seed: of the shuffling.
          rows_multiple: every batch's number of rows is a multiple of this; the rows that are added
            for it are empty.
        """
        self._lengths, self._seed = lengths, seed
        self._windows = -(-len(lengths) // _WINDOW)
        self._row_lengths = row_lengths(max_length)
        # Rows that have pairs, and all rows.
        self._rows_of = {length: filled_rows(batch_tokens, length) for length in self._row_lengths}
        self._size_of = {
            length: rows_of_batch(batch_tokens, length, rows_multiple)
            for length in self._row_lengths
        }
        # Plans are recomputed when asked for again; the few last ones are kept.
        self._patterns = functools.lru_cache(maxsize=4)(self._plan_window)
        self._batches = functools.lru_cache(maxsize=4)(self._fill_window)
        self._counts: dict[int, int] = {}  # batches of each window that was planned
        self._lock = threading.Lock()  # loading threads wait for a plan rather than make it twice

    def batch(self, step: int) -> PlannedBatch:
        """The batch of a step, for any step from 0 on."""
        with self._lock:
            return self._find(step)

    def _find(self, step: int) -> PlannedBatch:
        if len(self._counts) < self._windows:  # the first epoch: plan no further than asked
            found = self._find_in(0, step)
            if found:
                return found
        epoch, step = divmod(step, self.batches_per_epoch())
        found = self._find_in(epoch, step)
        assert found is not None
        return found

    def _find_in(self, epoch: int, step: int) -> PlannedBatch | None:
        for window in self._order(epoch):
            if step < self._count(window):
                return self._batches(epoch, window)[step]
            step -= self._count(window)
        return None

    def batches_per_epoch(self) -> int:
        """How many batches one pass over the corpus has; plans all of it."""
        return sum(self._count(window) for window in range(self._windows))

    def _order(self, epoch: int) -> Sequence[int]:
        return np.random.default_rng((self._seed, epoch)).permutation(self._windows).tolist()

    def _count(self, window: int) -> int:
        if window not in self._counts:
            rows = dict.fromkeys(self._row_lengths, 0)
            for pattern in self._patterns(window):
                rows[pattern.row_length] += pattern.times
            self._counts[window] = sum(
                -(-count // self._rows_of[length]) for length, count in rows.items()
            )
        return self._counts[window]

    def _members(self, window: int) -> np.ndarray:
        """The pairs of a window: every so-many-th of the corpus, so that windows are alike."""
        return np.arange(window, len(self._lengths), self._windows)

    def _plan_window(self, window: int) -> list[_Pattern]:
        cells, counts = np.unique(self._cells(window), return_counts=True)
        return _pack(_Cells(cells, counts), self._row_lengths, self._rows_of)

    def _cells(self, window: int) -> np.ndarray:
        lengths = np.asarray(self._lengths[self._members(window)], np.int64)
        return lengths[:, 0] * _CELL + lengths[:, 1]

    def _fill_window(self, epoch: int, window: int) -> list[PlannedBatch]:
        """Draw the pairs for the window's patterns, and the rows for its batches."""
        rng = np.random.default_rng((self._seed, epoch, window))
        members, cells = self._members(window), self._cells(window)
        order = rng.permutation(len(members))
        order = order[np.argsort(cells[order], kind="stable")]
        values, starts = np.unique(cells[order], return_index=True)
        next_of = dict(zip(values.tolist(), starts.tolist(), strict=True))
        members = members[order].tolist()

        rows: dict[int, list[list[int]]] = {length: [] for length in self._row_lengths}
        for pattern in self._patterns(window):
            columns = []
            for cell in pattern.cells:
                start = next_of[cell]
                next_of[cell] = start + pattern.times
                columns.append(members[start : start + pattern.times])
            rows[pattern.row_length] += map(list, zip(*columns, strict=True))

        batches = []
        for length, of_length in rows.items():
            rng.shuffle(of_length)
            most = self._rows_of[length]
            for start in range(0, len(of_length), most):
                chosen = of_length[start : start + most]
                empty = self._size_of[length] - len(chosen)
                batches.append(PlannedBatch(length, chosen + [[]] * empty))
        rng.shuffle(batches)
        return batches


def row_lengths(max_length: int) -> list[int]:
    """64, 128, ... and at last `max_length`: the shapes of batches, shortest first."""
    lengths = []
    length = _SHORTEST_ROW
    while length < max_length:
        lengths.append(length)
        length *= 2
    return [*lengths, max_length]


def rows_of_batch(batch_tokens: int, row_length: int, rows_multiple: int) -> int:
    """How many rows a batch has: the filled ones, and empty ones up to a multiple of `rows_multiple`."""
    return -(-filled_rows(batch_tokens, row_length) // rows_multiple) * rows_multiple


def filled_rows(batch_tokens: int, row_length: int) -> int:
    """How many rows hold at most `batch_tokens`; one, if even that has more.

    If that costs no more than an eighth of the batch, a multiple of 16 (or 8, 4, 2), so that as many
    devices, or pieces of an accumulated step, share a batch without empty rows.
    """
    most = max(1, batch_tokens // row_length)
    multiples = (most // alike * alike for alike in (16, 8, 4, 2, 1))
    return next(rows for rows in multiples if 8 * rows >= 7 * most)


class _Cells:
    """The pairs of a window that no row holds yet: `left[i]` of them have the lengths of cell i."""

    def __init__(self, cells: np.ndarray, counts: np.ndarray):
        total = cells // _CELL + cells % _CELL
        order = np.argsort(-total, kind="stable")  # largest first
        self.cells, self.left = cells[order], counts[order].copy()
        self.source, self.target = self.cells // _CELL, self.cells % _CELL
        self.total, self.longest = total[order], np.maximum(self.source, self.target)
        self.negative_total = -self.total

    def first(self, longer_than: int) -> int | None:
        """The largest cell with a side longer than that."""
        left = self.left > 0
        if 3 * np.count_nonzero(left) < 2 * len(left):  # shorter arrays: a third less time
            self.__dict__ = {name: array[left] for name, array in vars(self).items()}
        found = np.flatnonzero((self.left > 0) & (self.longest > longer_than))
        return int(found[0]) if len(found) else None

    def best(self, source_room: int, target_room: int) -> int | None:
        """The largest cell that fits, as long as it leaves about the same room on both sides."""
        best_score, best_place = -math.inf, None
        start = int(np.searchsorted(self.negative_total, -source_room - target_room))
        # No cell scores more than its total, and totals fall.
        while start < len(self.total) and best_score < self.total[start]:
            block = slice(start, start + _BLOCK)
            source, target = source_room - self.source[block], target_room - self.target[block]
            fits = (source >= 0) & (target >= 0) & (self.left[block] > 0)
            score = np.where(fits, self.total[block] - _BALANCE * np.abs(source - target), -np.inf)
            place = int(score.argmax())
            if score[place] > best_score:
                best_score, best_place = float(score[place]), start + place
            start += _BLOCK
        return best_place


def _pack(cells: _Cells, row_lengths: list[int], rows_of: dict[int, int]) -> list[_Pattern]:
    """Patterns that use up all pairs, longest rows first.

    A row of length L starts with a pair that is too long to share a shorter row with another like
    it, and goes on with the largest pairs that still fit. The last batch of each length is filled
    up with rows of shorter pairs, so that only the shortest rows leave a batch unfilled.
    """
    patterns: list[_Pattern] = []
    for shorter, length in reversed(list(zip([0, *row_lengths], row_lengths, strict=False))):
        rows = 0
        while (first := cells.first(longer_than=shorter // 2)) is not None:
            patterns.append(_take_rows(cells, first, length))
            rows += patterns[-1].times
        while rows % rows_of[length] and (first := cells.first(longer_than=0)) is not None:
            patterns.append(_take_rows(cells, first, length, at_most=-rows % rows_of[length]))
            rows += patterns[-1].times
    return patterns


def _take_rows(cells: _Cells, first: int, length: int, at_most: int | None = None) -> _Pattern:
    """Fill a row that starts with the cell `first`, as many times as the cells allow."""
    chosen: list[int] = []
    source_room, target_room, place = length, length, first
    while True:
        chosen.append(place)
        cells.left[place] -= 1
        source_room -= int(cells.source[place])
        target_room -= int(cells.target[place])
        found = cells.best(source_room, target_room)
        if found is None:
            break
        place = found
    uses = Counter(chosen)
    more = min(int(cells.left[place]) // count for place, count in uses.items())
    if at_most is not None:
        more = min(more, at_most - 1)
    for place, count in uses.items():
        cells.left[place] -= more * count
    return _Pattern(length, cells.cells[chosen].tolist(), 1 + more)


def assemble(
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    row_length: int,
    numbers: Sequence[int] | None = None,
) -> Batch:
    """The batch of these rows of (source ids, target ids), each side [rows, row_length] int32.

    `numbers`: the rows' numbers in the global batch; None: 0, 1, ...
    """
    return Batch(
        source=_side([[source for source, _ in row] for row in rows], row_length),
        target=_side([[target for _, target in row] for row in rows], row_length),
        rows=np.array(range(len(rows)) if numbers is None else numbers, np.int32),
    )


def _side(rows: Sequence[Sequence[np.ndarray]], row_length: int) -> Tokens:
    ids, segments, positions = np.zeros((3, len(rows), row_length), np.int32)
    sentences = [sentence for row in rows for sentence in row]
    if sentences:
        lengths = np.array([len(sentence) for sentence in sentences])
        numbers = np.concatenate([np.arange(1, len(row) + 1) for row in rows])
        in_row = np.array([sum(map(len, row)) for row in rows])
        real = np.arange(row_length) < in_row[:, None]  # [rows, row_length]
        ids[real] = np.concatenate(sentences)
        segments[real] = np.repeat(numbers, lengths)
        starts = np.cumsum(lengths) - lengths
        positions[real] = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    return Tokens(ids, segments, positions)
