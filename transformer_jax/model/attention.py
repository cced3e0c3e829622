# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention: section 3.2."""

import attention_kernels
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from transformer_jax.config import ModelConfig
from transformer_jax.model import on_mesh
from transformer_jax.model.decoding import join_heads, split_heads
from transformer_jax.model.dropout import DropoutRng, check_rng, evaluated
from transformer_jax.model.layers import Dense


class MultiHeadAttention(nnx.Module):
    """Section 3.2.2: MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O.

    head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V), with K = d_k and V = d_v free of D.
    """

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        """The four projections, computed in `dtype`; each head's columns stand together."""
        self.config, dtype = config, jnp.dtype(dtype)
        self.deterministic: bool | None = None  # see dropout.evaluated
        heads, d_model = config.num_heads, config.d_model
        self.query = Dense(d_model, heads * config.d_k, dtype, rngs=rngs)
        self.key = Dense(d_model, heads * config.d_k, dtype, rngs=rngs)
        self.value = Dense(d_model, heads * config.d_v, dtype, rngs=rngs)
        self.out = Dense(heads * config.d_v, d_model, dtype, rngs=rngs)

    def project_keys(
        self, memory: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H V"]]:
        """The keys and values of all heads."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def weights(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        query_segments: Int[Array, "B T"],
        key_segments: Int[Array, "B S"],
    ) -> Float[Array, "B H T S"]:
        """What each head makes of where x looks in memory: softmax(Q K^T / sqrt(d_k)), float32."""
        return attention_kernels.attention_weights(
            self._split(self.query(x)),
            self.project_keys(memory)[0],
            query_segments=query_segments,
            key_segments=key_segments,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        query_segments: Int[Array, "B T"],
        key_segments: Int[Array, "B S"],
        *,
        causal: bool = False,
        rng: DropoutRng | None = None,
    ) -> Float[Array, "B T D"]:
        """Attention from x over memory; self-attention when they are the same."""
        check_rng(rng)
        rate = self.config.attention_dropout
        heads = on_mesh.attention(
            self._split(self.query(x)),
            *self.project_keys(memory),
            query_segments,
            key_segments,
            causal=causal,
            rate=rate,
            rng=rng,
            implementation=self.config.attention_implementation,
        )
        return self.out(join_heads(evaluated(heads, rate, rng, self.deterministic)))

    def _split(self, x: Float[Array, "B T HK"]) -> Float[Array, "B T H K"]:
        return split_heads(x, self.config.num_heads)
