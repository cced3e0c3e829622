# SPDX-License-Identifier: Apache-2.0
"""Attention as Pallas kernels for Hopper GPUs, through Mosaic. What a program does: mosaic_tiles.py."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from attention_kernels import mosaic_tiles
from attention_kernels.backends import device_kind, platform
from attention_kernels.dropout import head_words
from attention_kernels.mosaic_tiles import ROWS, Plan, run

_DTYPES = (jnp.bfloat16, jnp.float16)
_HOPPER = ("H100", "H200", "H800", "H20", "GH200")  # compute capability 9.0, which has wgmma


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
    head_offset,
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
        words = head_words(dropout_seed, row_ids, heads, head_offset)

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
    return ROWS if length <= ROWS else -(-length // (2 * ROWS)) * 2 * ROWS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, words, query_segments, key_segments, query, key, value):
    """Of words [B, H], segments [B, T] and [B, S], query [B, T, H, F], key and value [B, S, H, F]."""
    return _forward(plan, words, query_segments, key_segments, query, key, value)[0]


def _forward(plan, words, query_segments, key_segments, query, key, value):
    batch, queries, heads, _ = query.shape
    out, log_sums = run(
        dataclasses.replace(plan, block=min(2 * ROWS, key.shape[1])),
        mosaic_tiles.attention_forward,
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
    d_key, d_value = run(
        plan,
        mosaic_tiles.attention_backward,
        words,
        own=of_keys,
        passing=of_queries,
        outputs=[key, value],
    )
    (d_query,) = run(
        plan,
        mosaic_tiles.attention_query_backward,
        words,
        own=of_queries,
        passing=of_keys,
        outputs=[query],
    )
    return None, None, None, d_query, d_key, d_value


_attention.defvjp(_forward, _backward)
