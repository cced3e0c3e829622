# SPDX-License-Identifier: Apache-2.0
"""Attention as Pallas kernels for Hopper GPUs, through Mosaic. What a program does: mosaic_tiles.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention_kernels import backends, mosaic_tiles, tiles
from attention_kernels.backends import Device
from attention_kernels.mosaic_tiles import LOG2_E, LOWEST, ROWS, Plan, run
from attention_kernels.options import Inputs, Options

_DTYPES = (jnp.bfloat16, jnp.float16)


def interpretation() -> Any:
    """How kernels are interpreted: not at all; tests put the parameters of an interpreter here."""
    return None


def unsupported(inputs: Inputs, device: Device) -> str | None:
    """Why these inputs cannot be served on this device, or None if they can."""
    if interpretation() is None and device.capability != (9, 0):
        return f"a device of kind {device.kind}: wgmma needs a GPU of compute capability 9.0"
    if backends.is_sharded(*inputs[:3]):
        return backends.SHARDED
    if inputs.query.dtype not in _DTYPES:
        return f"inputs of dtype {inputs.query.dtype}, which is not bfloat16 or float16"
    k, v = inputs.query.shape[3], inputs.value.shape[3]
    return f"heads of {k} and {v} features, more than 128" if max(k, v) > 128 else None


def forward(
    inputs: Inputs, *, options: Options, device: Device
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H T"]]:
    """Equation 1, and the log-sum-exp of every query's scores."""
    del device  # Hopper
    plan = _plan(inputs, options)
    per_row, of_queries, of_keys = _lay_out(plan, inputs)
    batch, queries, heads, _ = of_queries[0].shape
    keys = of_keys[0].shape[1]
    out, lse = run(
        dataclasses.replace(plan, block=min(2 * ROWS, keys)),
        mosaic_tiles.attention_forward,
        per_row,
        own=of_queries,
        passing=of_keys,
        outputs=[of_queries[0], jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)],
    )
    length, v = inputs.query.shape[1], inputs.value.shape[3]
    lse = lse[..., :length]
    return out[:, :length, :, :v], jnp.where(lse > LOWEST, lse / LOG2_E, -jnp.inf)


def backward(
    inputs: Inputs,
    out: Float[Array, "B T H V"],
    lse: Float[Array, "B H T"],
    d_out: Float[Array, "B T H V"],
    d_lse: Float[Array, "B H T"],
    *,
    options: Options,
    device: Device,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B S G K"], Float[Array, "B S G V"]]:
    """The gradients of query, key and value."""
    del device  # Hopper
    plan = _plan(inputs, options)
    per_row, (query, query_segments), of_keys = _lay_out(plan, inputs)
    lse, deltas = tiles.of_queries(out, lse, d_out, d_lse)
    ends = ((0, 0), (0, 0), (0, query.shape[1] - lse.shape[2]))
    d_out = _pad(plan, d_out.astype(query.dtype))
    of_queries = query, d_out, query_segments, jnp.pad(LOG2_E * lse, ends), jnp.pad(deltas, ends)
    # Each query head has a part of its key head's gradient.
    shape = (*of_keys[0].shape[:2], query.shape[2], plan.features)
    d_key, d_value = run(
        plan,
        mosaic_tiles.attention_backward,
        per_row,
        own=of_keys,
        passing=of_queries,
        outputs=[jax.ShapeDtypeStruct(shape, query.dtype)] * 2,
    )
    (d_query,) = run(
        plan,
        mosaic_tiles.attention_query_backward,
        per_row,
        own=of_queries,
        passing=of_keys,
        outputs=[query],
    )

    def gradient(of, like):
        """[B, S', H, F] -> [B, S, G, K]."""
        _, length, heads, features = like.shape
        of = of[:, :length, :, :features].reshape(of.shape[0], length, heads, -1, features)
        return of.astype(jnp.float32).sum(axis=3).astype(like.dtype)

    gradients = zip((d_query, d_key, d_value), inputs[:3], strict=True)
    d_query, d_key, d_value = (gradient(*pair) for pair in gradients)
    return d_query, d_key, d_value


def _plan(inputs: Inputs, options: Options) -> Plan:
    return Plan(
        features=64 if max(inputs.query.shape[3], inputs.value.shape[3]) <= 64 else 128,
        causal=options.causal,
        offset=inputs.query_offset is not None,
        rate=options.dropout_rate,
        interpretation=interpretation(),
    )


def _lay_out(plan: Plan, inputs: Inputs) -> tuple[tuple[Any, ...], ...]:
    """Whole tiles of whole features.

    (words [B, H], offsets [B]), (query [B, T', H, F], its segments [B, T']), (key and value
    [B, S', G, F], their segments [B, S']).
    """
    *vectors, query_segments, key_segments, offsets, words = inputs.complete()
    # Padding among the queries is made another number than padding among the keys, which it meets not.
    padding = jnp.iinfo(jnp.int32).min
    query_segments = jnp.where(query_segments == 0, padding, query_segments)
    query, key, value = (_pad(plan, of) for of in vectors)
    of_queries = query, _pad(plan, query_segments, padding)
    return (words, offsets), of_queries, (key, value, _pad(plan, key_segments))


def _pad(plan: Plan, array: jax.Array, filler: int = 0) -> jax.Array:
    """[B, T, H, K] -> [B, T', H, F]: whole tiles, and pairs of them; or segments, with padding."""
    length = array.shape[1]
    rows = ROWS if length <= ROWS else 2 * ROWS
    widths = [(0, 0), (0, -length % rows)]
    if array.ndim == 4:
        widths += [(0, 0), (0, plan.features - array.shape[3])]
    return jnp.pad(array, widths, constant_values=filler)
