# SPDX-License-Identifier: Apache-2.0
"""The oracle: scaled dot-product attention (section 3.2.1) in plain float32, obviously right.

Every other implementation is compared with this one, values and gradients, mask and dropout.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from attention_kernels.dropout import dropout_bits, keep_mask


def visible(
    query_length: int,
    key_length: int,
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
    causal: bool,
) -> Bool[Array, "#B 1 T S"]:
    """True where a query may look at a key.

    They must belong to the same segment, segment 0 is padding and sees and shows nothing, and with
    `causal` a query sees no key to its right.
    """
    mask = jnp.ones((1, query_length, key_length), bool)
    if query_segments is not None and key_segments is not None:
        mask &= query_segments[:, :, None] == key_segments[:, None, :]
    if query_segments is not None:
        mask &= query_segments[:, :, None] != 0
    if key_segments is not None:
        mask &= key_segments[:, None, :] != 0
    if causal:
        mask &= jnp.arange(query_length)[:, None] >= jnp.arange(key_length)[None, :]
    return mask[:, None]


def attention_weights(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    *,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "B H T S"]:
    """softmax(Q K^T / sqrt(d_k)), in float32; a query that sees no key has zeros."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = visible(query.shape[1], key.shape[1], query_segments, key_segments, causal)
    scores = scale * jnp.einsum(
        "bthk,bshk->bhts", query.astype(jnp.float32), key.astype(jnp.float32), precision="highest"
    )
    scores = jnp.where(mask, scores, -jnp.inf)
    largest = jnp.maximum(scores.max(axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    exponentials = jnp.where(mask, jnp.exp(scores - largest), 0.0)
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials / jnp.where(total == 0.0, 1.0, total)


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    *,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_seed: Integer[Array, ""] | None = None,
    row_ids: Int[Array, " B"] | None = None,
    head_offset: Int[Array, ""] | int = 0,
    scale: float | None = None,
) -> Float[Array, "B T H V"]:
    """softmax(Q K^T / sqrt(d_k)) V (equation 1), in float32, returned in the query's dtype."""
    weights = attention_weights(
        query,
        key,
        query_segments=query_segments,
        key_segments=key_segments,
        causal=causal,
        scale=scale,
    )
    if dropout_rate > 0.0 and dropout_seed is not None and row_ids is not None:
        _, heads, queries, keys = weights.shape
        bits = dropout_bits(dropout_seed, row_ids, heads, queries, keys, head_offset)
        weights = jnp.where(keep_mask(bits, dropout_rate), weights / (1.0 - dropout_rate), 0.0)
    out = jnp.einsum("bhts,bshv->bthv", weights, value.astype(jnp.float32), precision="highest")
    return out.astype(query.dtype)
