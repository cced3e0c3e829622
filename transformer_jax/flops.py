# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a training step, counted by hand: what MFU is a fraction of.

XLA's own count leaves out what is inside a kernel, and adds what is computed twice to save memory.
"""

from transformer_jax.config import ModelConfig


def flops_of_step(config: ModelConfig, *, rows: int, length: int) -> float:
    """Of a step's matrix products, for batches [rows, length] on both sides.

    The backward pass has two products for each of the forward pass; a product of [m, k] and [k, n]
    is 2 m k n operations. Padding counts, since it is computed.
    """
    d_model, heads = config.d_model, config.num_heads
    keys, values = heads * config.d_k, heads * config.d_v
    projections = d_model * (2 * keys + 2 * values)  # query, key, value, out
    over_keys = length * (keys + values)  # scores and their weighted sum
    attention = projections + over_keys
    feed_forward = 2 * d_model * config.d_ff
    encoder_layer = attention + feed_forward
    decoder_layer = 2 * attention + feed_forward
    softmax = d_model * config.vocab_size
    products = config.num_layers * (encoder_layer + decoder_layer) + softmax
    return 3 * 2 * products * rows * length
