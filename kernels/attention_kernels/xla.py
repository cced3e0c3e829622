# SPDX-License-Identifier: Apache-2.0
"""Attention left to XLA: two matrix products and a softmax, whole or in blocks of queries."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attention_kernels.dropout import entry_bits, keep_mask, keep_scale
from attention_kernels.options import Inputs, Options, wide
from attention_kernels.reference import attention_mask, for_every_query_head

BLOCK = 256  # queries whose weights exist at once, in `attention_in_blocks`


def attention(
    inputs: Inputs, options: Options
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H T"] | None]:
    """Equation 1: products in the inputs' dtype, softmax in float32; the log-sum-exp if it is wanted."""
    key, value = (for_every_query_head(inputs, of) for of in (inputs.key, inputs.value))
    dtype = wide(inputs.query.dtype)
    scores = jnp.einsum("bthk,bshk->bhts", inputs.query, key, preferred_element_type=dtype)
    mask = attention_mask(inputs, options.causal)
    if mask is not None:
        # Finite, so that a query without keys gives no NaN; its weights are cleared below.
        scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if inputs.words is not None:
        bits = entry_bits(inputs.words, inputs.query_ids(), key.shape[1])
        scale = keep_scale(options.dropout_rate)
        weights = jnp.where(keep_mask(bits, options.dropout_rate), weights * scale, 0.0)
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)
    out = jnp.einsum("bhts,bshv->bthv", weights.astype(value.dtype), value)
    return out, _log_sum_exp(scores, mask) if options.lse else None


def _log_sum_exp(scores, mask):
    lse = jax.nn.logsumexp(scores, axis=-1)
    return lse if mask is None else jnp.where(mask.any(axis=-1), lse, -jnp.inf)


def attention_in_blocks(
    inputs: Inputs, options: Options
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H T"] | None]:
    """The same, the weights of BLOCK queries at a time: memory that is linear in the keys.

    The backward pass makes each block's weights again. For lengths at which no kernel is at hand.
    """
    queries = inputs.query.shape[1]
    if queries <= BLOCK:
        return attention(inputs, options)
    dtype, number = inputs.query.dtype, -(-queries // BLOCK)
    # The gradients of keys and values are sums over the blocks: float32, whatever the inputs are.
    keys_values = [of.astype(wide(dtype)) for of in inputs[1:3]]

    def blocks(array):
        """[B, T, ...] -> [number, B, BLOCK, ...]; None stays."""
        widths = [(0, 0), (0, number * BLOCK - queries), *[(0, 0)] * (array.ndim - 2)]
        shape = (array.shape[0], number, BLOCK, *array.shape[2:])
        return jnp.moveaxis(jnp.pad(array, widths).reshape(shape), 1, 0)

    first = jnp.arange(number, dtype=jnp.int32) * BLOCK
    offset = jnp.zeros(inputs.query.shape[0], jnp.int32)
    if inputs.query_offset is not None:
        offset = inputs.query_offset

    @jax.checkpoint
    def one(block):
        query, segments, first = block
        key, value = (of.astype(dtype) for of in keys_values)
        of_block = inputs._replace(
            query=query,
            key=key,
            value=value,
            query_segments=segments,
            query_offset=offset + first,
        )
        return attention(of_block, options)

    out, lse = lax.map(one, (*jax.tree.map(blocks, (inputs.query, inputs.query_segments)), first))
    out = jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])[:, :queries]
    if lse is not None:
        lse = jnp.moveaxis(lse, 0, 2).reshape(*lse.shape[1:3], -1)[..., :queries]
    return out, lse
