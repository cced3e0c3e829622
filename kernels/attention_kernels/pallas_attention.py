# SPDX-License-Identifier: Apache-2.0
"""Attention as Pallas kernels: for TPUs, and for GPUs through Triton. What a program does: tiles.py."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention_kernels import tiles
from attention_kernels.backends import pallas_call, platform, power_of_two
from attention_kernels.dropout import head_words
from attention_kernels.tiles import Plan

_WIDEST = {"cpu": 256, "gpu": 128, "tpu": 256}  # features of a head
_LARGEST = 2**25  # bytes of a row's keys and values that a program on a TPU keeps at hand
_DTYPES = {
    "cpu": (jnp.float32, jnp.bfloat16, jnp.float16),
    "gpu": (jnp.float32, jnp.bfloat16, jnp.float16),
    "tpu": (jnp.float32, jnp.bfloat16),
}


def unsupported(query: jax.Array, key: jax.Array, value: jax.Array) -> str | None:
    """Why these inputs cannot be served here, or None if they can."""
    dtypes = _DTYPES[platform()]
    if query.dtype not in dtypes or len({query.dtype, key.dtype, value.dtype}) > 1:
        known = ", ".join(jnp.dtype(dtype).name for dtype in dtypes)
        return (
            f"inputs of dtype {query.dtype}, {key.dtype}, {value.dtype}, not all of one of {known}"
        )
    widest = _WIDEST[platform()]
    if max(query.shape[3], value.shape[3]) > widest:
        return f"heads of {query.shape[3]} and {value.shape[3]} features, more than {widest}"
    if min(*query.shape, *value.shape) == 0:
        return "an empty array"
    if platform() == "tpu":
        heads = _heads_together(query.shape[2], query.shape[3], value.shape[3])
        features = heads * (query.shape[3] + value.shape[3])
        longest = max(query.shape[1], key.shape[1])
        if longest * features * query.dtype.itemsize > _LARGEST:
            return f"a sequence of {longest} positions, too long for a TPU's vector memory"
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
    head_offset,
    scale,
):
    """See `attention_kernels.attention`; interpreted on a CPU.

    Raises:
      NotImplementedError: see `unsupported`.
    """
    reason = unsupported(query, key, value)
    if reason:
        raise NotImplementedError(f"implementation='pallas' cannot serve {reason}")
    batch, queries, heads, k = query.shape
    keys, v = value.shape[1], value.shape[3]
    scale = k**-0.5 if scale is None else scale
    plan = _plan(queries, keys, heads, k, v, scale, causal, dropout_rate, query.dtype)
    if query_segments is None:
        query_segments = jnp.ones((batch, queries), jnp.int32)
    if key_segments is None:
        key_segments = jnp.ones((batch, keys), jnp.int32)
    words = jnp.zeros((batch, heads), jnp.uint32)
    if dropout_rate > 0.0:
        words = head_words(dropout_seed, row_ids, heads, head_offset)

    def pad(array, length, features):
        """Whole tiles, and the heads side by side: [B, T, H, K] -> [B, T', H K']."""
        widths = (0, -array.shape[1] % length), (0, 0), (0, features - array.shape[3])
        return jnp.pad(array, ((0, 0), *widths)).reshape(batch, -1, heads * features)

    out = _attention(
        plan,
        words.reshape(batch, -1, 1, plan.heads),
        jnp.pad(query_segments, ((0, 0), (0, -queries % plan.queries)))[:, None, :],
        jnp.pad(key_segments, ((0, 0), (0, -keys % plan.keys)))[:, :, None],
        pad(query, plan.queries, plan.k),
        pad(key, plan.keys, plan.k),
        pad(value, plan.keys, plan.v),
    )
    return out.reshape(batch, -1, heads, plan.v)[:, :queries, :, :v]


def _plan(queries, keys, heads, k, v, scale, causal, rate, dtype):
    """Tiles as large as a device holds: a TPU's are whole rows of 128 lanes, a GPU's fit its registers.

    Where one tile takes all keys, a backward pass is two products shorter; `make aot` says how many a
    GPU has registers for.
    """
    tpu, exact = platform() == "tpu", dtype == jnp.float32
    if tpu:
        tile, whole, most_queries = 128, 256, 128
    else:
        whole = tile = (64 if max(k, v) <= 64 else 32) if exact else 128
        most_queries = 32 if exact else 64
    precision = None
    if exact:  # three passes over the halves of a float32 are what a GPU's tensor cores offer
        gpu = platform() == "gpu"
        precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if gpu else lax.Precision.HIGHEST
    return Plan(
        queries=_tile(queries, most_queries),
        keys=_tile(keys, whole if keys <= whole else tile),
        heads=_heads_together(heads, k, v) if tpu else 1,
        k=k if tpu else max(16, power_of_two(k)),
        v=v if tpu else max(16, power_of_two(v)),
        scale=scale,
        causal=causal,
        rate=rate,
        precision=precision,
    )


def _tile(length: int, most: int) -> int:
    """The size of a sequence's tiles: a power of two from 16 to `most`."""
    return min(most, max(16, power_of_two(length)))


def _heads_together(heads: int, k: int, v: int) -> int:
    """The fewest heads whose vectors fill whole rows of 128 lanes; all, if no number does."""
    for number in range(1, heads):
        if heads % number == 0 and number * k % 128 == 0 and number * v % 128 == 0:
            return number
    return heads


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, words, query_segments, key_segments, query, key, value):
    """[B, T, H V] of words [B, G, 1, heads], segments [B, 1, T] and [B, S, 1], query [B, T, H K], ..."""
    return _forward(plan, words, query_segments, key_segments, query, key, value)[0]


def _forward(plan, words, query_segments, key_segments, query, key, value):
    batch, queries, _ = query.shape
    groups, keys = words.shape[1], key.shape[1]
    arrays = (words, query_segments, key_segments, query, key, value)
    out, log_sums = pallas_call(
        functools.partial(tiles.attention_forward, plan=plan),
        arrays,
        grid=(batch, groups, queries // plan.queries),
        in_specs=[
            _words(plan),
            _row(plan.queries, tiled=True),
            _column(keys),
            _vectors(plan, plan.queries, plan.k, tiled=True),
            _vectors(plan, keys, plan.k),
            _vectors(plan, keys, plan.v),
        ],
        outputs=[
            (
                _vectors(plan, plan.queries, plan.v, tiled=True),
                (batch, queries, value.shape[2]),
                query.dtype,
            ),
            (
                _row_of_heads(plan, plan.queries, tiled=True),
                (batch, groups, plan.heads, queries),
                jnp.float32,
            ),
        ],
        **_work(plan, query, keys, products_of_k=1, products_of_v=1),
    )
    return out, (*arrays, out, log_sums)


def _backward(plan, residuals, d_out):
    *arrays, out, log_sums = residuals
    words, _, _, query, key, value = arrays
    batch, queries, _ = query.shape
    groups, keys = words.shape[1], key.shape[1]
    # The sum over keys of weight times its gradient (Dao et al. 2022, B.2), [B, G, heads, T].
    products = (out.astype(jnp.float32) * d_out).reshape(batch, queries, -1, plan.v).sum(axis=-1)
    deltas = products.swapaxes(1, 2).reshape(log_sums.shape)
    arrays = (*arrays, log_sums, deltas, d_out)
    in_specs = [
        _words(plan),
        _row(queries),
        _column(plan.keys, tiled=True),
        _vectors(plan, queries, plan.k),
        _vectors(plan, plan.keys, plan.k, tiled=True),
        _vectors(plan, plan.keys, plan.v, tiled=True),
        _row_of_heads(plan, queries),
        _row_of_heads(plan, queries),
        _vectors(plan, queries, plan.v),
    ]
    outputs = [
        (_vectors(plan, plan.keys, plan.k, tiled=True), key.shape, key.dtype),
        (_vectors(plan, plan.keys, plan.v, tiled=True), value.shape, value.dtype),
    ]
    one_tile = keys == plan.keys
    if one_tile and platform() == "gpu":
        # Three gradients at a time: a GPU's registers hold half the tile that the forward pass has.
        plan = dataclasses.replace(plan, queries=min(plan.queries, 4096 // plan.keys))
    if one_tile:
        outputs.append((_vectors(plan, queries, plan.k), query.shape, query.dtype))
    d_key, d_value, *d_query = pallas_call(
        functools.partial(tiles.attention_backward, plan=plan),
        arrays,
        grid=(batch, groups, keys // plan.keys),
        in_specs=in_specs,
        outputs=outputs,
        **_work(plan, query, keys, products_of_k=3 if one_tile else 2, products_of_v=2),
    )
    if not one_tile:
        in_specs = [
            _words(plan),
            _row(plan.queries, tiled=True),
            _column(keys),
            _vectors(plan, plan.queries, plan.k, tiled=True),
            _vectors(plan, keys, plan.k),
            _vectors(plan, keys, plan.v),
            _row_of_heads(plan, plan.queries, tiled=True),
            _row_of_heads(plan, plan.queries, tiled=True),
            _vectors(plan, plan.queries, plan.v, tiled=True),
        ]
        tile = _vectors(plan, plan.queries, plan.k, tiled=True)
        (*d_query,) = pallas_call(
            functools.partial(tiles.attention_query_backward, plan=plan),
            arrays,
            grid=(batch, groups, queries // plan.queries),
            in_specs=in_specs,
            outputs=[(tile, query.shape, query.dtype)],
            **_work(plan, query, keys, products_of_k=2, products_of_v=1),
        )
    return None, None, None, d_query[0], d_key, d_value


_attention.defvjp(_forward, _backward)


def _work(plan, query, keys, *, products_of_k, products_of_v):
    """How much a kernel computes, and with how many warps: 8 where a tile overfills 4's registers."""
    scores = math.prod(query.shape) // plan.k * keys
    share = 2 if plan.causal else 1  # of the scores, half are never made
    features = products_of_k * plan.k + products_of_v * plan.v
    return {
        "flops": 2 * scores * features // share,
        "transcendentals": scores // share,
        "warps": 8 if plan.keys >= 128 else 4,
    }


# Which part of an array a program (row b, group of heads g, tile i) has: all positions, or the tile's.


def _words(plan):
    return pl.BlockSpec((None, None, 1, plan.heads), lambda b, g, i: (b, g, 0, 0))


def _row(length, tiled=False):
    return pl.BlockSpec((None, 1, length), lambda b, g, i: (b, 0, i if tiled else 0))


def _column(length, tiled=False):
    return pl.BlockSpec((None, length, 1), lambda b, g, i: (b, i if tiled else 0, 0))


def _vectors(plan, length, features, tiled=False):
    block = (None, length, plan.heads * features)
    return pl.BlockSpec(block, lambda b, g, i: (b, i if tiled else 0, g))


def _row_of_heads(plan, length, tiled=False):
    block = (None, None, plan.heads, length)
    return pl.BlockSpec(block, lambda b, g, i: (b, g, 0, i if tiled else 0))
