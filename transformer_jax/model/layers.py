# SPDX-License-Identifier: Apache-2.0
"""The parts of a layer beside attention: feed-forward (section 3.3), residual connection (3.1)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transformer_jax.config import ModelConfig
from transformer_jax.model import on_mesh
from transformer_jax.model.dropout import DropoutRng, dropout, evaluated

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "swish": jax.nn.swish}


class Dense(nnx.Module):
    """x W + b, with Glorot-uniform W as in the authors' code."""

    def __init__(self, d_in: int, d_out: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """`dtype`: of the product; W and b are float32."""
        initial = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.dtype = dtype
        self.kernel = nnx.Param(initial(rngs.params(), (d_in, d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "*dims d_in"]) -> Float[Array, "*dims d_out"]:
        """The same for every token, in one product over all of them.

        The gradient of W is a sum over tokens. Over one dimension that is a plain matrix product; over
        two (rows, positions) XLA transposes an operand first, a fifth of a base step on a CPU.
        """
        dims, (d_in, d_out) = x.shape[:-1], self.kernel.shape
        tokens = x.reshape(math.prod(dims), d_in).astype(self.dtype)
        product = tokens @ self.kernel.astype(self.dtype) + self.bias.astype(self.dtype)[None]
        return product.reshape(*dims, d_out)


class FeedForward(nnx.Module):
    """Section 3.3, equation 2: FFN(x) = max(0, x W_1 + b_1) W_2 + b_2."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """The two projections, D to F and back."""
        self.config = config
        self.deterministic: bool | None = None  # see dropout.evaluated
        self.expand = Dense(config.d_model, config.d_ff, dtype, rngs=rngs)
        self.contract = Dense(config.d_ff, config.d_model, dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], *, rng: DropoutRng | None = None
    ) -> Float[Array, "B T D"]:
        """The same function at every position."""
        hidden = self.activate(self.expand(x))
        rate = self.config.activation_dropout
        return self.contract(dropout(hidden, rate, rng, deterministic=self.deterministic))

    def activate(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        """The non-linearity: max(0, x) in the paper."""
        return ACTIVATIONS[self.config.activation](x)


class Residual(nnx.Module):
    """Section 3.1, around every sublayer.

    post-norm (the paper): LayerNorm(x + Dropout(Sublayer(x)))
    pre-norm:              x + Dropout(Sublayer(LayerNorm(x)))
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """The layer normalisation; the sublayer is given at the call."""
        self.config = config
        self.deterministic: bool | None = None  # see dropout.evaluated
        self.norm = layer_norm(config, dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        sublayer: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
        rng: DropoutRng | None,
    ) -> Float[Array, "B T D"]:
        """The sublayer's output, dropped out, added to its input and normalised."""
        rate = self.config.dropout
        if self.config.norm_position == "pre":
            y = sublayer(self.norm(x))
            return x + dropout(y, rate, rng, deterministic=self.deterministic)
        scale, bias = (jnp.asarray(of[...]) for of in (self.norm.scale, self.norm.bias))  # type: ignore[index]
        y = evaluated(sublayer(x), rate, rng, self.deterministic)
        return on_mesh.dropout_add_layer_norm(
            y, x, scale, bias, rate=rate, eps=self.norm.epsilon, rng=rng
        )


def layer_norm(config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation over D, computed in float32; the authors' epsilon is the default."""
    return nnx.LayerNorm(config.d_model, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
