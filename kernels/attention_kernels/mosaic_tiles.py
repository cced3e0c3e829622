# SPDX-License-Identifier: Apache-2.0
"""What one program of the attention kernels for Hopper does. Names and mathematics: tiles.py.

This module alone imports `jax.experimental.pallas.mosaic_gpu`, whose API changes often. How differs from
`tiles.py` in what Hopper wants:

- A program is one or two warpgroups of 128 threads. Each has a tile of 64 rows of its own: queries, or
  keys in the kernel for their gradients. The other side goes by in blocks, which they share.
- Blocks stand in shared memory, in two slots: a copy engine fills one while the tensor cores read the
  other. At most lengths of sentences two are all there is, on their way before the first is used.
- Scores stay in registers, in wgmma's layout. A tile's rows are down, blocks go across: what there is one
  of per query (maximum, log-sum-exp, segment) is a column of a tile of queries and a row of a tile of keys.

Letters: F features of a head (K and V, both padded to 64 or 128), W warpgroups, N rows of a block.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from attention_kernels.dropout import fold, keep_mask, keep_scale

ROWS = 64  # of a warpgroup's tile, as wgmma has it
LOWEST = -1e30  # below every score, and finite: no NaN where a query sees nothing
LOG2_E = math.log2(math.e)  # the hardware's exponential has base 2, and so has the log-sum-exp here
_AXES = ("row", "head", "group", "warpgroup")  # of the grid, and of a program
# How vectors stand in shared memory for wgmma: rows of 128 bytes, eight to a tile, swizzled.
_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for."""

    features: int  # F
    causal: bool
    offset: bool  # the first query does not stand where the first key does
    rate: float  # of dropout
    interpretation: Any  # how the kernel is interpreted; None: it is compiled
    warpgroups: int = 1  # W
    block: int = ROWS  # N


def run(plan, kernel, per_row, *, own, passing, outputs):
    """Run a kernel in which programs have tiles of the arrays `own`, and blocks of `passing` go by.

    Args:
      plan: its W is chosen here.
      kernel: gets the plan, the word of its (row, head), where the first query stands among the keys,
        the number of its tile's first row, the tile and `walk`; it returns what to write to `outputs`,
        a row for each of the tile's.
      per_row: words [B, H], see `dropout.py`, and offsets [B].
      own, passing: vectors [B, T, H, F] or [B, S, G, F], then segments [B, T] and numbers [B, H, T].
      outputs: shape and dtype of each, vectors first.
    """
    words, offsets = per_row
    batch, length = own[0].shape[:2]
    heads = words.shape[1]
    plan = dataclasses.replace(plan, warpgroups=min(2, length // ROWS))

    def buffers(arrays, count, rows):
        return [
            plgpu.SMEM((count, rows, plan.features), of.dtype, transforms=_TRANSFORMS)
            if len(of.shape) == 4
            else plgpu.SMEM((count, rows), of.dtype)
            for of in arrays
        ]

    return plgpu.kernel(
        functools.partial(_program, plan, kernel, [len(own), len(passing), len(outputs)]),
        out_type=[jax.ShapeDtypeStruct(of.shape, of.dtype) for of in outputs],
        scratch_types=[
            buffers(own, plan.warpgroups, ROWS),
            buffers(passing, 2, plan.block),
            buffers([of for of in outputs if len(of.shape) == 3], plan.warpgroups, ROWS),
            plgpu.Barrier(num_arrivals=len(own), num_barriers=plan.warpgroups),
            plgpu.Barrier(num_arrivals=len(passing), num_barriers=2),
            plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=2),
        ],
        # "Lane": layouts are as stated here. Those that JAX infers, its other way, it does not find.
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(batch, heads, length // (plan.warpgroups * ROWS)),
        grid_names=_AXES[:3],
        num_threads=plan.warpgroups,
        thread_name=_AXES[3],
        kernel_name=kernel.__name__,
        interpret=plan.interpretation,
    )(words, offsets, *own, *passing)


def _program(plan, kernel, counts, words, offsets, *refs):
    """What a warpgroup does: fetch its tile, run the kernel, write the results; see `run`."""
    each = iter(refs)
    own, passing, outputs = (list(itertools.islice(each, count)) for count in counts)
    tiles, slots, numbers, tile_arrived, arrived, released = each
    row, head, group, me = map(lax.axis_index, _AXES)
    first_of_group = group * plan.warpgroups * ROWS
    first_row = first_of_group + me * ROWS
    offset = offsets[row] if plan.offset else 0
    first, last = _span(plan, kernel, offset, first_of_group, passing[0].shape[1] // plan.block)

    def copy(refs, buffers, first_row, rows, barrier):
        for ref, buffer in zip(refs, buffers, strict=True):
            part = _part(ref, row, head, pl.ds(first_row, rows), words.shape[1])
            plgpu.copy_gmem_to_smem(part, buffer, barrier)

    def start(number):
        slot = lax.rem(number, 2)
        block = [buffer.at[slot] for buffer in slots]
        copy(passing, block, number * plan.block, plan.block, arrived.at[slot])

    def walk(step, carry):
        """carry = step(first row, block, carry) for all blocks, while the next is on its way."""

        def one(number, carry):
            slot = lax.rem(number, 2)
            plgpu.barrier_wait(arrived.at[slot])
            carry = step(number * plan.block, [buffer.at[slot] for buffer in slots], carry)

            @pl.when(number + 2 < last)
            def _():
                plgpu.barrier_arrive(released.at[slot])

                @pl.when(me == 0)
                def _():
                    plgpu.barrier_wait(released.at[slot])
                    start(number + 2)

            return carry

        return lax.fori_loop(first, last, one, carry)

    tile = [buffer.at[me] for buffer in tiles]
    copy(own, tile, first_row, ROWS, tile_arrived.at[me])

    @pl.when(me == 0)
    def _():
        pl.loop(first, jnp.minimum(first + 2, last))(start)

    plgpu.barrier_wait(tile_arrived.at[me])
    results = kernel(plan, words[row, head], offset, first_row, tile, walk)
    # The tile is done with: its memory takes the results on their way out.
    leaving = [*tile[: len(outputs) - len(numbers)], *(buffer.at[me] for buffer in numbers)]
    for result, buffer in zip(results, leaving, strict=True):
        buffer[...] = result.astype(buffer.dtype)
    plgpu.commit_smem()
    for buffer, ref in zip(leaving, outputs, strict=True):
        plgpu.copy_smem_to_gmem(
            buffer, _part(ref, row, head, pl.ds(first_row, ROWS), words.shape[1])
        )
    plgpu.wait_smem_to_gmem(0)


def _span(plan, kernel, offset, first_of_group, blocks):
    """Which blocks go by. With `causal`, queries see no key to their right, keys no query to their left."""
    if not plan.causal:
        return 0, blocks
    if kernel is attention_backward:
        first = lax.div(first_of_group - offset, jnp.int32(plan.block))
        return jnp.minimum(jnp.maximum(first, 0), blocks), blocks
    last = offset + first_of_group + plan.warpgroups * ROWS
    seen = lax.div(last + (plan.block - 1), jnp.int32(plan.block))
    return 0, jnp.minimum(jnp.maximum(seen, 0), blocks)


def _part(ref, row, head, rows, heads):
    """A head's rows of vectors [B, T, H, F], of numbers [B, H, T], or of segments [B, T].

    Query heads may share a key head: of [B, S, G, F] head h has h // (heads / G).
    """
    if len(ref.shape) == 4:
        sharing = heads // ref.shape[2]
        return ref.at[row, rows, head if sharing == 1 else lax.div(head, jnp.int32(sharing))]
    return ref.at[row, head, rows] if len(ref.shape) == 3 else ref.at[row, rows]


def attention_forward(plan, word, offset, first_row, tile, walk):
    """A tile of queries, all keys: equation 1, and the log-sum-exp of every query's scores."""
    q, query_segments = tile[0], _read(tile[1], 0)

    def step(first_key, block, carry):
        largest, total, sums = carry  # [64], [64], [64, F]
        k, v, key_segments = block
        (scores,) = _products((q, k.T))
        seen, kept = _masks(
            plan, word, (offset + first_row, query_segments), (first_key, _read(key_segments, 1)), 0
        )
        scores = jnp.where(seen, LOG2_E * scores, LOWEST)
        new_largest = jnp.maximum(largest, scores.max(axis=1))
        weights = jnp.where(seen, jnp.exp2(scores - _spread(new_largest, scores.shape, 0)), 0.0)
        shrink = jnp.exp2(largest - new_largest)
        total = shrink * total + weights.sum(axis=1)
        sums = _spread(shrink, sums.shape, 0) * sums
        sums = _add_product(plan, sums, _drop(plan, weights, kept).astype(v.dtype), v)
        return new_largest, total, sums

    start = _zeros(ROWS) + LOWEST, _zeros(ROWS), _zeros(ROWS, plan.features)
    largest, total, sums = walk(step, start)
    total = jnp.where(total == 0.0, 1.0, total)
    return sums / _spread(total, sums.shape, 0), largest + jnp.log2(total)


def attention_backward(plan, word, offset, first_row, tile, walk):
    """A tile of keys, all queries: the gradients of these keys and values."""
    k, v, key_segments = tile[0], tile[1], _read(tile[2], 0)

    def step(first_query, block, carry):
        d_k, d_v = carry  # [64, F]
        q, d_o, query_segments, lse, deltas = block
        masks = _masks(
            plan,
            word,
            (offset + first_query, _read(query_segments, 1)),
            (first_row, key_segments),
            1,
        )
        scores, d_weights = _products((k, q.T), (v, d_o.T))
        weights, d_scores = _gradients(
            plan, scores, d_weights, masks, _read(lse, 1), _read(deltas, 1), 1
        )
        d_v = _add_product(plan, d_v, weights.astype(d_o.dtype), d_o)
        d_k = _add_product(plan, d_k, d_scores.astype(q.dtype), q)
        return d_k, d_v

    start = _zeros(ROWS, plan.features), _zeros(ROWS, plan.features)
    return walk(step, start)


def attention_query_backward(plan, word, offset, first_row, tile, walk):
    """A tile of queries, all keys: the gradient of these queries."""
    q, d_o, *numbers = tile
    query_segments, lse, deltas = (_read(of, 0) for of in numbers)

    def step(first_key, block, d_q):
        k, v, key_segments = block
        masks = _masks(
            plan, word, (offset + first_row, query_segments), (first_key, _read(key_segments, 1)), 0
        )
        scores, d_weights = _products((q, k.T), (d_o, v.T))
        _, d_scores = _gradients(plan, scores, d_weights, masks, lse, deltas, 0)
        return _add_product(plan, d_q, d_scores.astype(k.dtype), k)

    return (walk(step, _zeros(ROWS, plan.features)),)


def _gradients(plan, scores, d_weights, masks, lse, deltas, axis):
    """(weights after dropout, gradient of the scores); lse and deltas go along `axis`."""
    seen, kept = masks
    exponents = LOG2_E * scores - _spread(lse, scores.shape, axis)
    weights = jnp.where(seen, jnp.exp2(exponents), 0.0)
    d_weights = _drop(plan, d_weights, kept) - _spread(deltas, scores.shape, axis)
    return _drop(plan, weights, kept), weights * d_weights


def _masks(plan, word, queries, keys, axis):
    """Of a tile with queries along `axis`: what is visible (`reference.attention_mask`), what dropout keeps.

    queries, keys: the number of the first, and the segments of all.
    """
    first_query, query_segments = queries
    first_key, key_segments = keys
    lengths = query_segments.shape[0], key_segments.shape[0]
    shape = lengths if axis == 0 else lengths[::-1]
    query = first_query + _count(lengths[0], axis)
    key = _spread(first_key + _count(lengths[1], 1 - axis), shape, 1 - axis)
    seen = _spread(query_segments, shape, axis) == _spread(key_segments, shape, 1 - axis)
    if plan.causal:
        seen &= _spread(query, shape, axis) >= key
    if plan.rate == 0.0:
        return seen, None
    words = _spread(fold(word, query), shape, axis)
    return seen, keep_mask(fold(words, key), plan.rate)


def _drop(plan, tile, kept):
    return tile if kept is None else jnp.where(kept, tile * keep_scale(plan.rate), 0.0)


def _count(length, axis):
    iota = lax.broadcasted_iota(jnp.int32, (length,), 0)
    return plgpu.layout_cast(iota, plgpu.Layout.WGMMA.reduce(1 - axis))


def _read(ref, axis):
    """[n] from shared memory, for `_spread`."""
    return plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA.reduce(1 - axis))


def _zeros(*shape):
    """Registers for sums: [64] or [64, F]."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def _spread(vector, shape, axis):
    """[n] -> a matrix that varies along `axis` alone, distributed over threads as wgmma's sums are."""
    vector = plgpu.layout_cast(vector, plgpu.Layout.WGMMA.reduce(1 - axis))
    return plgpu.layout_cast(lax.broadcast_in_dim(vector, shape, (axis,)), plgpu.Layout.WGMMA)


def _products(*pairs):
    """a @ b of pairs in shared memory, in float32."""

    def multiply(*sums):
        for (a, b), total in zip(pairs, sums, strict=True):
            plgpu.wgmma(total, a, b)
        return [total[...] for total in sums]

    shapes = [(a.shape[0], b.shape[1]) for a, b in pairs]
    return pl.run_scoped(multiply, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def _add_product(plan, total, weights, b):
    """total + weights @ b, weights from registers, b from shared memory."""
    if plan.interpretation is None:
        return pl.run_state(lambda sums: plgpu.wgmma(sums, weights, b))(plgpu.ACC.init(total))
    # The interpreter has neither operands in registers nor sums that start from something.
    return total + pl.run_scoped(
        functools.partial(_through_shared_memory, weights, b),
        plgpu.SMEM((plan.warpgroups, *weights.shape), weights.dtype),
        collective_axes=_AXES[3],
    )


def _through_shared_memory(weights, b, buffer):
    mine = buffer.at[lax.axis_index(_AXES[3])]
    mine[...] = weights
    plgpu.commit_smem()
    (product,) = _products((mine, b))
    return product
