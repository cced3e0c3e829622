# SPDX-License-Identifier: Apache-2.0
"""Every pair once an epoch, rows that fit, few shapes, little padding, and no memory of the past."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.data import batching
from transformer_jax.data.batching import BatchPlan, PlannedBatch, Share, assemble, row_lengths
from transformer_jax.data.vocabulary import train_vocabulary


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    """Plans of corpora of up to 300 pairs, of any lengths, for batches of any size."""
    max_length = draw(st.sampled_from([5, 64, 100, 256]))
    pairs = draw(st.integers(1, 300))
    longest = draw(st.integers(2, max_length))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return BatchPlan(
        rng.integers(2, longest + 1, (pairs, 2)).astype(np.uint16),
        batch_tokens=draw(st.sampled_from([1, 200, 1024, 4096])),
        max_length=max_length,
        seed=draw(st.integers(0, 3)),
        rows_multiple=draw(st.sampled_from([1, 2, 3, 8])),
    )


def epoch(plan: BatchPlan, number: int = 0) -> list[PlannedBatch]:
    """The batches of one pass over the corpus."""
    count = plan.batches_per_epoch()
    return [plan.batch(step) for step in range(number * count, (number + 1) * count)]


def members(batches: list[PlannedBatch]) -> list[int]:
    """All pairs in these batches."""
    return [pair for batch in batches for row in batch.rows for pair in row]


@pytest.fixture(params=[2**17, 37], ids=["one window", "many windows"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What small corpora do in one window, and large ones in many."""
    monkeypatch.setattr(batching, "_WINDOW", request.param)


@pytest.mark.usefixtures("window")
@given(plans(), st.integers(0, 3))
def test_an_epoch_has_every_pair_once(plan: BatchPlan, number: int) -> None:
    assert sorted(members(epoch(plan, number))) == list(range(len(plan._lengths)))


@pytest.mark.usefixtures("window")
@given(plans())
def test_rows_hold_what_they_are_given_on_both_sides(plan: BatchPlan) -> None:
    for batch in epoch(plan):
        for row in batch.rows:
            source, target = plan._lengths[row].astype(int).sum(axis=0)
            assert max(source, target) <= batch.row_length


@pytest.mark.usefixtures("window")
@given(plans())
def test_a_row_length_has_one_shape(plan: BatchPlan) -> None:
    shapes = {(len(batch.rows), batch.row_length) for batch in epoch(plan)}
    lengths = [length for _, length in shapes]
    assert len(set(lengths)) == len(lengths)
    assert set(lengths) <= set(plan._row_lengths)


@pytest.mark.usefixtures("window")
@given(plans(), st.integers(0, 2000))
def test_a_batch_is_a_function_of_the_step(plan: BatchPlan, step: int) -> None:
    fresh = BatchPlan(
        plan._lengths,
        batch_tokens=1,
        max_length=plan._row_lengths[-1],
        seed=plan._seed,
    )
    fresh._rows_of, fresh._size_of = plan._rows_of, plan._size_of
    resumed = fresh.batch(step)  # the first that it is asked for
    for earlier in range(max(0, step - 5), step):
        plan.batch(earlier)
    assert resumed == plan.batch(step)
    plan.batches_per_epoch()  # now every window is planned
    assert resumed == plan.batch(step)


@given(
    st.integers(1, 50_000),
    st.sampled_from(row_lengths(256)),
    st.sampled_from([1, 2, 3, 4, 6, 8, 16, 24, 64]),
)
def test_rows_of_a_batch(batch_tokens: int, length: int, multiple: int) -> None:
    filled = batching.filled_rows(batch_tokens, length)
    assert filled * length <= batch_tokens or filled == 1
    most = batch_tokens // length
    assert 8 * filled >= 7 * most, "a smaller batch than need be"
    if most // 16 * 16 >= 7 / 8 * most > 0:
        assert filled % 16 == 0, "up to 16 devices would get empty rows"
    rows = batching.rows_of_batch(batch_tokens, length, multiple)
    assert rows % multiple == 0
    assert 0 <= rows - filled < multiple


@pytest.mark.usefixtures("window")
@given(plans(), st.integers(1, 24))
def test_devices_add_empty_rows_and_change_nothing_else(plan: BatchPlan, devices: int) -> None:
    shared = BatchPlan(
        plan._lengths, batch_tokens=1, max_length=plan._row_lengths[-1], seed=plan._seed
    )
    shared._rows_of = plan._rows_of
    shared._size_of = {length: -(-n // devices) * devices for length, n in plan._rows_of.items()}
    for one, other in zip(epoch(plan), epoch(shared), strict=True):
        assert one.row_length == other.row_length
        assert len(other.rows) % devices == 0
        assert [row for row in one.rows if row] == [row for row in other.rows if row]
        assert all(other.rows[: sum(map(bool, one.rows))]), "an empty row before a filled one"


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=24),
    st.integers(1, 5),
)
def test_shares_are_a_batch_whatever_the_order_of_the_devices(
    owners: list[int], rows_each: int
) -> None:
    count = len(owners) * rows_each
    shares = [
        Share(tuple(part for part, owner in enumerate(owners) if owner == process), len(owners))
        for process in range(4)
    ]
    rows = [row for share in shares for row in share.rows(count)]
    assert sorted(rows) == list(range(count))
    assert all(share.rows(count) == sorted(share.rows(count)) for share in shares)
    assert Share().rows(count) == list(range(count))


def captions(pairs: int = 20_000) -> np.ndarray:
    """Lengths like those of Multi30k."""
    rng = np.random.default_rng(0)
    source = rng.gamma(9.0, 1.7, pairs) + 3
    target = source * rng.normal(1.05, 0.15, pairs)
    return np.clip(np.stack([source, target], axis=1), 2, 256).astype(np.uint16)


def filled(plan: BatchPlan, batches: list[PlannedBatch]) -> float:
    """The share of positions, source and target together, that are real tokens."""
    positions = sum(2 * len(batch.rows) * batch.row_length for batch in batches)
    return float(plan._lengths[members(batches)].sum() / positions)


def test_few_positions_are_padding_and_shapes_are_few() -> None:
    plan = BatchPlan(captions(), batch_tokens=4096, max_length=256, seed=0)
    batches = epoch(plan)
    assert filled(plan, batches) > 0.94
    assert len({batch.row_length for batch in batches}) <= 3


def test_multi30k_is_filled_to_92_percent(multi30k: Path, tmp_path: Path) -> None:
    sides = [
        (multi30k / f"train.{language}").read_text(encoding="utf-8").split("\n")[:-1]
        for language in ("en", "de")
    ]
    vocabulary = train_vocabulary(
        itertools.chain(*sides), size=10_000, kind="bpe", path=tmp_path / "v.model"
    )
    lengths = np.array([[len(ids) for ids in vocabulary.encode(side)] for side in sides]).T
    plan = BatchPlan(lengths, batch_tokens=4096, max_length=256, seed=0)
    batches = epoch(plan)
    assert filled(plan, batches) > 0.96  # 92 % is asked for, 96.8 % was measured
    assert len({batch.row_length for batch in batches}) <= 3


def test_wmt_lengths_are_filled_to_92_percent() -> None:
    rng = np.random.default_rng(0)
    source = rng.lognormal(3.25, 0.65, 30_000)
    target = source * rng.lognormal(0.05, 0.2, 30_000)
    lengths = np.clip(np.stack([source, target], axis=1), 2, 256).astype(np.uint16)
    plan = BatchPlan(lengths, batch_tokens=25_000, max_length=256, seed=0, rows_multiple=8)
    assert filled(plan, epoch(plan)) > 0.92


@pytest.mark.usefixtures("window")
def test_epochs_and_seeds_differ() -> None:
    plan, other = (
        BatchPlan(captions(500), batch_tokens=1024, max_length=64, seed=seed) for seed in (0, 1)
    )
    first, second, third = epoch(plan), epoch(plan, 1), epoch(other)
    assert len(first) == len(second) == len(third)
    assert first != second
    assert first != third


@pytest.mark.usefixtures("window")
def test_short_and_long_rows_come_in_no_order() -> None:
    lengths = np.concatenate([captions(3000), captions(1000) * 3])
    plan = BatchPlan(np.minimum(lengths, 256), batch_tokens=1024, max_length=256, seed=0)
    for number in range(2):
        row_sizes = [batch.row_length for batch in epoch(plan, number)]
        half = len(row_sizes) // 2
        assert np.mean(row_sizes[:half]) == pytest.approx(np.mean(row_sizes[half:]), rel=0.25)


def test_fewer_pairs_than_a_batch_holds() -> None:
    plan = BatchPlan(np.array([[3, 4], [5, 2]]), batch_tokens=4096, max_length=256, seed=0)
    assert plan.batches_per_epoch() == 1
    batch = plan.batch(7)
    assert (batch.row_length, len(batch.rows)) == (64, 64)
    assert sorted(members([batch])) == [0, 1]


def test_a_batch_is_laid_out_as_its_docstring_says() -> None:
    def ids(*numbers: int) -> np.ndarray:
        return np.array(numbers, np.uint16)

    rows = [
        [(ids(7, 8, 1), ids(9, 1)), (ids(5, 1), ids(6, 6, 6, 1))],
        [],
        [(ids(4, 1), ids(1))],
    ]
    batch = assemble(rows, 7, [10, 11, 12])
    assert batch.source.ids.tolist() == [[7, 8, 1, 5, 1, 0, 0], [0] * 7, [4, 1, 0, 0, 0, 0, 0]]
    assert batch.source.segments.tolist() == [[1, 1, 1, 2, 2, 0, 0], [0] * 7, [1, 1, *[0] * 5]]
    assert batch.source.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0] * 7, [0, 1, *[0] * 5]]
    assert batch.target.ids.tolist() == [[9, 1, 6, 6, 6, 1, 0], [0] * 7, [1, *[0] * 6]]
    assert batch.target.segments.tolist() == [[1, 1, 2, 2, 2, 2, 0], [0] * 7, [1, *[0] * 6]]
    assert batch.target.positions.tolist() == [[0, 1, 0, 1, 2, 3, 0], [0] * 7, [0] * 7]
    assert batch.rows.tolist() == [10, 11, 12]
    for side in (batch.source, batch.target):
        assert {side.ids.dtype, side.segments.dtype, side.positions.dtype} == {np.dtype(np.int32)}
    empty = assemble([[], []], 4)
    assert empty.source.segments.tolist() == [[0] * 4] * 2
