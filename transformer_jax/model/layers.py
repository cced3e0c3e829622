# SPDX-License-Identifier: Apache-2.0
"""The parts of a layer: attention (section 3.2), feed-forward (3.3), residual connection (3.1)."""

from collections.abc import Callable

import attention_kernels
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.config import ModelConfig
from transformer_jax.model.noise import Noise, dropout

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "swish": jax.nn.swish}


def dense(d_in: int, d_out: int, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> nnx.Linear:
    """x W + b with Glorot-uniform W, as in the authors' code."""
    initial = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
    return nnx.Linear(d_in, d_out, dtype=dtype, kernel_init=initial, rngs=rngs)


class MultiHeadAttention(nnx.Module):
    """Section 3.2.2: MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O.

    head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V), with K = d_k and V = d_v free of D.
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """The four projections; each head's columns stand together."""
        self.config = config
        heads, d_model = config.num_heads, config.d_model
        self.query = dense(d_model, heads * config.d_k, dtype, rngs=rngs)
        self.key = dense(d_model, heads * config.d_k, dtype, rngs=rngs)
        self.value = dense(d_model, heads * config.d_v, dtype, rngs=rngs)
        self.out = dense(heads * config.d_v, d_model, dtype, rngs=rngs)

    def project_keys(
        self, memory: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H V"]]:
        """The keys and values of all heads."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def attend(
        self,
        x: Float[Array, "B T D"],
        keys: Float[Array, "B S H K"],
        values: Float[Array, "B S H V"],
        query_segments: Int[Array, "B T"],
        key_segments: Int[Array, "B S"],
        *,
        causal: bool = False,
        noise: Noise | None = None,
    ) -> Float[Array, "B T D"]:
        """Queries from x, over keys and values that are already projected."""
        heads = attention_kernels.attention(
            self._split(self.query(x)),
            keys,
            values,
            query_segments=query_segments,
            key_segments=key_segments,
            causal=causal,
            dropout_rate=0.0 if noise is None else self.config.attention_dropout,
            dropout_seed=None if noise is None else noise.seed,
            row_ids=None if noise is None else noise.rows,
        )
        return self.out(heads.reshape(*heads.shape[:2], -1))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        query_segments: Int[Array, "B T"],
        key_segments: Int[Array, "B S"],
        *,
        causal: bool = False,
        noise: Noise | None = None,
    ) -> Float[Array, "B T D"]:
        """Attention from x over memory; self-attention when they are the same."""
        keys, values = self.project_keys(memory)
        return self.attend(
            x, keys, values, query_segments, key_segments, causal=causal, noise=noise
        )

    def _split(self, x: Float[Array, "B T HK"]) -> Float[Array, "B T H K"]:
        return x.reshape(*x.shape[:2], self.config.num_heads, -1)


class FeedForward(nnx.Module):
    """Section 3.3, equation 2: FFN(x) = max(0, x W_1 + b_1) W_2 + b_2."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """The two projections, D to F and back."""
        self.config = config
        self.expand = dense(config.d_model, config.d_ff, dtype, rngs=rngs)
        self.contract = dense(config.d_ff, config.d_model, dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], *, noise: Noise | None = None
    ) -> Float[Array, "B T D"]:
        """The same function at every position."""
        hidden = ACTIVATIONS[self.config.activation](self.expand(x))
        return self.contract(dropout(hidden, self.config.activation_dropout, noise))


class Residual(nnx.Module):
    """Section 3.1, around every sublayer.

    post-norm (the paper): LayerNorm(x + Dropout(Sublayer(x)))
    pre-norm:              x + Dropout(Sublayer(LayerNorm(x)))
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """The layer normalisation; the sublayer is given at the call."""
        self.config = config
        self.norm = layer_norm(config, dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        sublayer: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
        noise: Noise | None,
    ) -> Float[Array, "B T D"]:
        """The sublayer's output, dropped out, added to its input and normalised."""
        rate = self.config.dropout
        if self.config.norm_position == "pre":
            return x + dropout(sublayer(self.norm(x)), rate, noise)
        return self.norm(x + dropout(sublayer(x), rate, noise))


def layer_norm(config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation over D with the authors' epsilon, computed in float32."""
    return nnx.LayerNorm(config.d_model, epsilon=1e-6, dtype=dtype, rngs=rngs)
