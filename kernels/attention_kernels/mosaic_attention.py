# SPDX-License-Identifier: Apache-2.0
"""Attention as Pallas Mosaic GPU kernels, for Hopper's tensor cores (wgmma).

This module alone knows `jax.experimental.pallas.mosaic_gpu`, whose API changes often. What is computed,
and the names, are those of `tiles.py`; how, differs by what Hopper wants:

- A program is one or two warpgroups of 128 threads. Each has a tile of 64 rows of its own: queries, or
  keys in the kernel for their gradients. The other side passes by in blocks that the program's
  warpgroups share.
- Blocks stand in shared memory, in two slots: the copy engine fills one while the tensor cores read the
  other. At most lengths of sentences that is all there is, and on its way before the first is used.
- Scores stay in registers. A tile of keys stands as in `tiles.py`, keys down and queries across; a tile
  of queries has them down, so that what there is one of per query is always of the rows that stay.

Letters: F features of a head (K and V, both padded to 64 or 128), W warpgroups, N rows of a block.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from attention_kernels.backends import device_kind, platform
from attention_kernels.dropout import fold, keep_mask

_ROWS = 64  # of a warpgroup's tile, as wgmma has it
_LOWEST = -1e30  # below every score, and finite: no NaN where a query sees nothing
_LOG2_E = math.log2(math.e)  # the hardware's exponential has base 2, and so has the log-sum-exp here
# How vectors stand in shared memory for wgmma: rows of 128 bytes, eight to a tile, swizzled.
_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
_DTYPES = (jnp.bfloat16, jnp.float16)
_AXES = ("row", "head", "group", "warpgroup")  # of the grid, and of a program's warpgroups
_HOPPER = ("H100", "H200", "H800", "H20", "GH200")  # compute capability 9.0, which has wgmma


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for."""

    features: int  # F
    scale: float
    causal: bool
    rate: float  # of dropout
    interpretation: Any  # how the kernel is interpreted; None: it is compiled
    warpgroups: int = 1  # W
    block: int = _ROWS  # N


class Place(NamedTuple):
    """Where a program stands."""

    first_row: Any  # of this warpgroup's tile
    first_of_group: Any  # the first row of the program's tiles
    blocks: int  # that there are


def interpretation() -> Any:
    """How kernels are interpreted: not at all; tests put the parameters of an interpreter here."""
    return None


def unsupported(query: jax.Array, key: jax.Array, value: jax.Array) -> str | None:
    """Why these inputs cannot be served here, or None if they can."""
    if interpretation() is None and not (
        platform() == "gpu" and any(name in _HOPPER for name in device_kind().split())
    ):
        return f"a device of kind {device_kind()}: wgmma needs a GPU of compute capability 9.0"
    if query.dtype not in _DTYPES or len({query.dtype, key.dtype, value.dtype}) > 1:
        dtypes = f"{query.dtype}, {key.dtype}, {value.dtype}"
        return f"inputs of dtype {dtypes}, not all bfloat16 or all float16"
    if max(query.shape[3], value.shape[3]) > 128:
        return f"heads of {query.shape[3]} and {value.shape[3]} features, more than 128"
    if min(*query.shape, *value.shape) == 0:
        return "an empty array"
    return None


def attention(
    query,
    key,
    value,
    *,
    query_segments,
    key_segments,
    causal,
    dropout_rate,
    dropout_seed,
    row_ids,
    first_head,
    scale,
):
    """See `attention_kernels.attention`.

    Raises:
      NotImplementedError: see `unsupported`.
    """
    reason = unsupported(query, key, value)
    if reason:
        raise NotImplementedError(f"implementation='mosaic_gpu' cannot serve {reason}")
    batch, queries, heads, k = query.shape
    keys, v = value.shape[1], value.shape[3]
    plan = Plan(
        features=64 if max(k, v) <= 64 else 128,
        scale=k**-0.5 if scale is None else scale,
        causal=causal,
        rate=dropout_rate,
        interpretation=interpretation(),
    )
    if query_segments is None:
        query_segments = jnp.ones((batch, queries), jnp.int32)
    if key_segments is None:
        key_segments = jnp.ones((batch, keys), jnp.int32)
    words = jnp.zeros((batch, heads), jnp.uint32)
    if dropout_rate > 0.0:
        words = fold(dropout_seed.astype(jnp.uint32), row_ids)[:, None]
        words = fold(words, first_head + jnp.arange(heads))

    def pad(array):
        """Whole tiles of whole features: [B, T, H, K] -> [B, T', H, F]; segments with padding."""
        widths = [(0, 0)] * array.ndim
        widths[1] = 0, _padded(array.shape[1]) - array.shape[1]
        if array.ndim == 4:
            widths[3] = 0, plan.features - array.shape[3]
        return jnp.pad(array, widths)

    # Padding among the queries is made another number than padding among the keys, which it meets not.
    query_segments = jnp.where(query_segments == 0, -1, query_segments).astype(jnp.int32)
    out = _attention(
        plan,
        words,
        pad(query_segments),
        pad(key_segments.astype(jnp.int32)),
        *map(pad, (query, key, value)),
    )
    return out[:, :queries, :, :v]


def _padded(length: int) -> int:
    """One tile, or pairs of tiles."""
    return _ROWS if length <= _ROWS else -(-length // (2 * _ROWS)) * 2 * _ROWS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, words, query_segments, key_segments, query, key, value):
    """Of words [B, H], segments [B, T] and [B, S], query [B, T, H, F], key and value [B, S, H, F]."""
    return _forward(plan, words, query_segments, key_segments, query, key, value)[0]


def _forward(plan, words, query_segments, key_segments, query, key, value):
    batch, queries, heads, _ = query.shape
    out, log_sums = _call(
        dataclasses.replace(plan, block=min(2 * _ROWS, key.shape[1])),
        attention_forward,
        words,
        own=(query, query_segments),
        passing=(key, value, key_segments),
        outputs=[query, jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)],
    )
    return out, (words, query_segments, key_segments, query, key, value, out, log_sums)


def _backward(plan, residuals, d_out):
    words, query_segments, key_segments, query, key, value, out, log_sums = residuals
    # The sum over keys of weight times its gradient (Dao et al. 2022, B.2), [B, H, T].
    deltas = jnp.einsum("bthf,bthf->bht", out.astype(jnp.float32), d_out.astype(jnp.float32))
    of_queries = (query, d_out, query_segments, log_sums, deltas)
    of_keys = (key, value, key_segments)
    d_key, d_value = _call(
        plan, attention_backward, words, own=of_keys, passing=of_queries, outputs=[key, value]
    )
    (d_query,) = _call(
        plan, attention_query_backward, words, own=of_queries, passing=of_keys, outputs=[query]
    )
    return None, None, None, d_query, d_key, d_value


_attention.defvjp(_forward, _backward)


def _call(plan, kernel, words, *, own, passing, outputs):
    """Run a kernel in which programs have tiles of the arrays `own`, and blocks of `passing` go by.

    Args:
      plan: its W is chosen here.
      kernel: gets the plan, the word of its (row, head), its `Place`, the tile and `walk`, and returns
        what to write to `outputs`: a row for each of the tile's.
      words, own, passing: arrays, see `_attention`, and numbers [B, H, T]; vectors come first.
      outputs: shape and dtype of each; vectors come first.
    """
    batch, length, heads, _ = own[0].shape
    plan = dataclasses.replace(plan, warpgroups=min(2, length // _ROWS))
    blocks = passing[0].shape[1] // plan.block

    def body(words, *refs):
        own_refs, passing_refs, output_refs, (tiles, slots, numbers, *barriers) = _split(
            refs, len(own), len(passing), len(outputs)
        )
        tile_arrived, arrived, released = barriers
        row, head, group, me = map(lax.axis_index, _AXES)
        first_row = (group * plan.warpgroups + me) * _ROWS
        tile = [buffer.at[me] for buffer in tiles]

        def copy(refs, buffers, rows, barrier):
            for ref, buffer in zip(refs, buffers, strict=True):
                plgpu.copy_gmem_to_smem(_part(ref, row, head, rows), buffer, barrier)

        def start_copying(number):
            slot = lax.rem(number, 2)
            block = [buffer.at[slot] for buffer in slots]
            copy(passing_refs, block, pl.ds(number * plan.block, plan.block), arrived.at[slot])

        def walk(first, last, step, carry):
            """carry = step(first row, block, carry), block after block, with the copies ahead."""

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
                        start_copying(number + 2)

                return carry

            @pl.when(me == 0)
            def _():
                pl.loop(first, jnp.minimum(first + 2, last))(start_copying)

            return lax.fori_loop(first, last, one, carry)

        rows = pl.ds(first_row, _ROWS)
        copy(own_refs, tile, rows, tile_arrived.at[me])
        plgpu.barrier_wait(tile_arrived.at[me])
        place = Place(first_row, group * plan.warpgroups * _ROWS, blocks)
        results = kernel(plan, words[row, head], place, tile, walk)
        # The tile is done with: its memory takes the results on their way out.
        vectors = len(outputs) - len(numbers)
        leaving = [*tile[:vectors], *(buffer.at[me] for buffer in numbers)]
        for result, buffer, ref in zip(results, leaving, output_refs, strict=True):
            buffer[...] = result.astype(buffer.dtype)
        plgpu.commit_smem()
        for buffer, ref in zip(leaving, output_refs, strict=True):
            plgpu.copy_smem_to_gmem(buffer, _part(ref, row, head, rows))
        plgpu.wait_smem_to_gmem(0)

    def buffers(arrays, count, rows):
        return [
            plgpu.SMEM((count, rows, plan.features), of.dtype, transforms=_TRANSFORMS)
            if of.ndim == 4
            else plgpu.SMEM((count, rows), of.dtype)
            for of in arrays
        ]

    return plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(of.shape, of.dtype) for of in outputs],
        scratch_types=[
            buffers(own, plan.warpgroups, _ROWS),
            buffers(passing, 2, plan.block),
            buffers([of for of in outputs if len(of.shape) == 3], plan.warpgroups, _ROWS),
            plgpu.Barrier(num_arrivals=len(own), num_barriers=plan.warpgroups),
            plgpu.Barrier(num_arrivals=len(passing), num_barriers=2),
            plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=2),
        ],
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(batch, heads, length // (plan.warpgroups * _ROWS)),
        grid_names=_AXES[:3],
        num_threads=plan.warpgroups,
        thread_name=_AXES[3],
        kernel_name=kernel.__name__,
        interpret=plan.interpretation,
    )(words, *own, *passing)


def _split(refs, *counts):
    """The first, the next, ... so many, and the rest."""
    parts = []
    for count in counts:
        parts.append(refs[:count])
        refs = refs[count:]
    return *parts, refs


def _part(ref, row, head, rows):
    """A head's rows of vectors [B, T, H, F], of numbers [B, H, T], or of segments [B, T]."""
    if len(ref.shape) == 4:
        return ref.at[row, rows, head]
    return ref.at[row, head, rows] if len(ref.shape) == 3 else ref.at[row, rows]


def attention_forward(plan, word, place, tile, walk):
    """A tile of queries, all keys: equation 1, and the log-sum-exp of every query's scores."""
    q, query_segments = tile[0], _read(tile[1], 0)

    def step(first_key, block, carry):
        largest, total, sums = carry  # [64], [64], [64, F]
        k, v, key_segments = block
        (scores,) = _products((q, k.T))
        seen, kept = _masks(
            plan, word, (place.first_row, query_segments), (first_key, _read(key_segments, 1)), 0
        )
        scores = jnp.where(seen, (plan.scale * _LOG2_E) * scores, _LOWEST)
        new_largest = jnp.maximum(largest, scores.max(axis=1))
        weights = jnp.where(seen, jnp.exp2(scores - _spread(new_largest, scores.shape, 0)), 0.0)
        shrink = jnp.exp2(largest - new_largest)
        total = shrink * total + weights.sum(axis=1)
        sums = _spread(shrink, sums.shape, 0) * sums
        sums = _add_product(plan, sums, _drop(plan, weights, kept).astype(v.dtype), v)
        return new_largest, total, sums

    start = _zeros(_ROWS) + _LOWEST, _zeros(_ROWS), _zeros(_ROWS, plan.features)
    largest, total, sums = walk(0, _blocks_seen(plan, place), step, start)
    total = jnp.where(total == 0.0, 1.0, total)
    return sums / _spread(total, sums.shape, 0), largest + jnp.log2(total)


def attention_backward(plan, word, place, tile, walk):
    """A tile of keys, all queries: the gradients of these keys and values."""
    k, v, key_segments = tile[0], tile[1], _read(tile[2], 0)

    def step(first_query, block, carry):
        d_k, d_v = carry  # [64, F]
        q, d_o, query_segments, log_sums, deltas = block
        masks = _masks(
            plan, word, (first_query, _read(query_segments, 1)), (place.first_row, key_segments), 1
        )
        scores, d_weights = _products((k, q.T), (v, d_o.T))
        weights, d_scores = _gradients(
            plan, scores, d_weights, masks, _read(log_sums, 1), _read(deltas, 1), 1
        )
        d_v = _add_product(plan, d_v, weights.astype(d_o.dtype), d_o)
        d_k = _add_product(plan, d_k, d_scores.astype(q.dtype), q)
        return d_k, d_v

    first = lax.div(place.first_of_group, plan.block) if plan.causal else 0
    start = _zeros(_ROWS, plan.features), _zeros(_ROWS, plan.features)
    return walk(first, place.blocks, step, start)


def attention_query_backward(plan, word, place, tile, walk):
    """A tile of queries, all keys: the gradient of these queries."""
    q, d_o, *numbers = tile
    query_segments, log_sums, deltas = (_read(of, 0) for of in numbers)

    def step(first_key, block, d_q):
        k, v, key_segments = block
        masks = _masks(
            plan, word, (place.first_row, query_segments), (first_key, _read(key_segments, 1)), 0
        )
        scores, d_weights = _products((q, k.T), (d_o, v.T))
        _, d_scores = _gradients(plan, scores, d_weights, masks, log_sums, deltas, 0)
        return _add_product(plan, d_q, d_scores.astype(k.dtype), k)

    return (walk(0, _blocks_seen(plan, place), step, _zeros(_ROWS, plan.features)),)


def _blocks_seen(plan, place):
    """How many blocks of keys go by a group of queries: with `causal`, none to its right."""
    if not plan.causal:
        return place.blocks
    last = place.first_of_group + plan.warpgroups * _ROWS
    return jnp.minimum(place.blocks, lax.div(last + plan.block - 1, plan.block))


def _gradients(plan, scores, d_weights, masks, log_sums, deltas, axis):
    """(weights after dropout, gradient of the products Q K^T); log_sums and deltas go along `axis`."""
    seen, kept = masks
    exponents = (plan.scale * _LOG2_E) * scores - _spread(log_sums, scores.shape, axis)
    weights = jnp.where(seen, jnp.exp2(exponents), 0.0)
    d_weights = _drop(plan, d_weights, kept) - _spread(deltas, scores.shape, axis)
    return _drop(plan, weights, kept), plan.scale * weights * d_weights


def _masks(plan, word, queries, keys, axis):
    """Of a tile with queries along `axis`: what is visible (`reference.visible`), what dropout keeps.

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
    return tile if kept is None else jnp.where(kept, tile / (1.0 - plan.rate), 0.0)


def _count(length, axis):
    iota = lax.broadcasted_iota(jnp.int32, (length,), 0)
    return plgpu.layout_cast(iota, plgpu.Layout.WGMMA.reduce(1 - axis))


def _read(ref, axis):
    """[n] from shared memory, for `_spread`."""
    return plgpu.load(ref, (), layout=plgpu.Layout.WGMMA.reduce(1 - axis))


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
