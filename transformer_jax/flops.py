# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a training step, counted by hand: what MFU is a fraction of.

XLA's own count leaves out what is inside a kernel, takes a loop's body once, and adds what is computed
twice to save memory.
"""

from transformer_jax.config import ModelConfig


def flops_of_step(config: ModelConfig, *, source: int, target: int) -> int:
    """Of a step's matrix products with weights, for so many source and target positions.

    The backward pass has two products for each of the forward pass; a product of [m, k] and [k, n]
    is 2 m k n operations. Padding counts, since it is computed. The scores of attention are not
    among them (1 to 7 % more at the lengths of translation), nor is anything element by element.
    """
    d_model = config.d_model
    # Query and key, value and out: twice D x H K, twice D x H V.
    attention = 2 * d_model * config.num_heads * (config.d_k + config.d_v)
    feed_forward = 2 * d_model * config.d_ff
    cross_attention_of_side = attention // 2  # query and out are the target's, key and value not
    products = source * config.num_layers * (attention + feed_forward + cross_attention_of_side)
    products += target * config.num_layers * (attention + feed_forward + cross_attention_of_side)
    products += target * d_model * config.vocab_size
    return 3 * 2 * products
