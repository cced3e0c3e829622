# SPDX-License-Identifier: Apache-2.0
"""Attention for JAX with segments and dropout that works in training; cross-entropy; a sublayer's end.

Needs jax and jaxtyping alone, and knows nothing of transformer_jax.
"""

from attention_kernels.attention import (
    IMPLEMENTATIONS,
    attention,
    attention_weights,
    choose_attention,
)
from attention_kernels.cross_entropy import CrossEntropySums, linear_cross_entropy
from attention_kernels.dropout import dropout, dropout_bits, fold_in
from attention_kernels.layer_norm import choose_layer_norm, dropout_add_layer_norm
from attention_kernels.sharded import (
    sharded_attention,
    sharded_dropout_add_layer_norm,
    sharded_linear_cross_entropy,
)

__all__ = [
    "IMPLEMENTATIONS",
    "CrossEntropySums",
    "attention",
    "attention_weights",
    "choose_attention",
    "choose_layer_norm",
    "dropout",
    "dropout_add_layer_norm",
    "dropout_bits",
    "fold_in",
    "linear_cross_entropy",
    "sharded_attention",
    "sharded_dropout_add_layer_norm",
    "sharded_linear_cross_entropy",
]
