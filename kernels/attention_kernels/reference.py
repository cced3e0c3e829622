# SPDX-License-Identifier: Apache-2.0
"""The oracle: scaled dot-product attention (section 3.2.1) in plain float32, obviously right.

Every other implementation is compared with this one, values and gradients, mask and dropout.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attention_kernels.dropout import entry_bits, keep_mask, keep_scale
from attention_kernels.options import Inputs, Options


def attention_mask(inputs: Inputs, causal: bool) -> Bool[Array, "#B 1 T S"] | None:
    """True where a query may look at a key; None where every query sees every key.

    They must belong to the same segment, segment 0 is padding and sees and shows nothing, and with
    `causal` a query sees no key to its right.
    """
    mask = None
    if inputs.query_segments is not None and inputs.key_segments is not None:
        queries, keys = inputs.query_segments[:, :, None], inputs.key_segments[:, None, :]
        mask = (queries == keys) & (queries != 0)
    if causal:
        key_ids = jnp.arange(inputs.key.shape[1], dtype=jnp.int32)
        left = inputs.query_ids()[:, :, None] >= key_ids[None, None]
        mask = left if mask is None else mask & left
    return None if mask is None else mask[:, None]


def weights_and_lse(
    inputs: Inputs, causal: bool
) -> tuple[Float[Array, "B H T S"], Float[Array, "B H T"]]:
    """softmax(Q K^T), and the logarithm of its denominator; a query that sees no key has 0 and -inf."""
    key = for_every_query_head(inputs, inputs.key)
    scores = jnp.einsum("bthk,bshk->bhts", inputs.query, key, precision="highest")
    mask = attention_mask(inputs, causal)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    largest = jnp.maximum(scores.max(axis=-1, keepdims=True), jnp.finfo(scores.dtype).min)
    exponentials = jnp.exp(scores - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    seen = total > 0.0
    lse = jnp.where(seen, largest + jnp.log(jnp.where(seen, total, 1.0)), -jnp.inf)
    return exponentials / jnp.where(seen, total, 1.0), lse[..., 0]


def attention(
    inputs: Inputs, options: Options
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H T"]]:
    """softmax(Q K^T) V (equation 1; the queries are scaled already), and the log-sum-exp."""
    weights, lse = weights_and_lse(inputs, options.causal)
    if inputs.words is not None:
        keep = keep_mask(
            entry_bits(inputs.words, inputs.query_ids(), inputs.key.shape[1]), options.dropout_rate
        )
        weights = jnp.where(keep, weights * keep_scale(options.dropout_rate), 0.0)
    value = for_every_query_head(inputs, inputs.value)
    return jnp.einsum("bhts,bshv->bthv", weights, value, precision="highest"), lse


def for_every_query_head(inputs: Inputs, array: Float[Array, "B S G F"]):
    """[B, S, H, F]: query head h has key head h // (H / G)."""
    sharing = inputs.query.shape[2] // array.shape[2]
    return array if sharing == 1 else jnp.repeat(array, sharing, axis=2)
