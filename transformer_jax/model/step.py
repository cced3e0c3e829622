# SPDX-License-Identifier: Apache-2.0
"""One position of the decoder for W hypotheses of every sentence, as a search asks for it.

It computes what `Transformer.decode` does (figure 1, right), with the weights laid out for rows of a
single position: the three projections of self-attention are one product, and products may be in
bfloat16 or in 8-bit integers.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

if TYPE_CHECKING:
    from transformer_jax.model.attention import MultiHeadAttention
    from transformer_jax.model.transformer import DecoderLayer, Transformer

KeysValues = tuple[Array, Array]
NUMBERS = ("float32", "bfloat16", "int8")
_LARGEST = 127.0  # of 8 bits; -128 stays unused, so that the range is symmetric


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """Weights of a product x W + b."""

    kernel: Any  # [OUT, IN] if `by_row`, else [IN, OUT]; int8 stands for kernel * scale.
    bias: Any  # [OUT] or None.
    scale: Any  # [OUT] float32 if the kernel is int8, else None.
    by_row: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def of(cls, kernel: Array, bias: Array | None, numbers: str, *, by_row: bool = False):
        """The same weights in other numbers; int8 has a scale for every output."""
        if numbers != "int8":
            return cls(kernel.astype(numbers), bias, None, by_row)
        axis = 1 if by_row else 0
        scale = jnp.maximum(jnp.abs(kernel).max(axis), 1e-30) / _LARGEST  # [OUT]
        rounded = jnp.round(kernel / jnp.expand_dims(scale, axis)).astype(jnp.int8)
        return cls(rounded, bias, scale, by_row)

    def __call__(self, x: Float[Array, "B W IN"]) -> Float[Array, "B W OUT"]:
        """x W + b in float32. For an int8 kernel each row of x is rounded to 255 steps, too."""
        dimensions = (((2,), (1 if self.by_row else 0,)), ((), ()))
        if self.scale is None:
            out = jax.lax.dot_general(
                x.astype(self.kernel.dtype),
                self.kernel,
                dimensions,
                preferred_element_type=jnp.float32,
            )
        else:
            x = x.astype(jnp.float32)
            step = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / _LARGEST  # [B, W, 1]
            whole = jax.lax.dot_general(
                jnp.round(x / step).astype(jnp.int8),
                self.kernel,
                dimensions,
                preferred_element_type=jnp.int32,
            )
            out = whole.astype(jnp.float32) * step * self.scale
        return out if self.bias is None else out + self.bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """The matrices of a decoder layer that a step needs."""

    projections: Matrix  # queries, keys and values of self-attention, side by side
    self_out: Matrix
    cross_query: Matrix
    cross_out: Matrix
    expand: Matrix
    contract: Matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepWeights:
    """All matrices of a step."""

    layers: Sequence[LayerWeights]
    vocabulary: Matrix


def step_weights(model: "Transformer", numbers: str) -> StepWeights:
    """The decoder's matrices for `decode_step`, in "float32", "bfloat16" or "int8"."""

    def matrix(linear: Any) -> Matrix:
        return Matrix.of(linear.kernel[...], linear.bias[...], numbers)

    def layer(of: "DecoderLayer") -> LayerWeights:
        attention = of.self_attention
        three = attention.query, attention.key, attention.value
        projections = Matrix.of(
            jnp.concatenate([linear.kernel[...] for linear in three], axis=1),
            jnp.concatenate([linear.bias[...] for linear in three]),  # type: ignore[index]
            numbers,
        )
        return LayerWeights(
            projections,
            matrix(attention.out),
            matrix(of.cross_attention.query),
            matrix(of.cross_attention.out),
            matrix(of.feed_forward.expand),
            matrix(of.feed_forward.contract),
        )

    embedding = model.embedding
    bias = None if embedding.bias is None else embedding.bias[...]
    return StepWeights(
        [layer(of) for of in model.decoder],
        Matrix.of(embedding.table[...], bias, numbers, by_row=True),
    )


def attend_to_self(
    attention: "MultiHeadAttention",
    weights: LayerWeights,
    x: Float[Array, "B W D"],
    position: Int[Array, ""],
    cache: KeysValues,
) -> tuple[Float[Array, "B W D"], KeysValues]:
    """Attention over the hypothesis's own positions up to this one, which the cache gains."""
    config = attention.config
    heads, d_k, dtype = config.num_heads, config.d_k, cache[0].dtype
    query, key, value = (
        part.reshape(*x.shape[:2], heads, -1).astype(dtype)
        for part in jnp.split(weights.projections(x), [heads * d_k, 2 * heads * d_k], axis=-1)
    )
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(old, new[:, :, :, None], position, axis=3)
        for old, new in zip(cache, (key, value), strict=True)
    )
    # One update serves attention and the search; XLA would make it twice, and copy all for that.
    keys, values = jax.lax.optimization_barrier((keys, values))
    # Products of a vector with a matrix, which XLA on a CPU computes several times as fast as it
    # does products of a matrix of one row.
    scores = jnp.einsum(
        "bwhk,bwhlk->bwhl", query * d_k**-0.5, keys, preferred_element_type=jnp.float32
    )
    seen = jnp.arange(keys.shape[3]) <= position  # [L]
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bwhl,bwhlv->bwhv", shares.astype(dtype), values)
    return weights.self_out(out.reshape(*x.shape[:2], -1)), (keys, values)


def attend_to_source(
    attention: "MultiHeadAttention",
    weights: LayerWeights,
    x: Float[Array, "B W D"],
    cross: KeysValues,
    source_segments: Int[Array, "B S"],
) -> Float[Array, "B W D"]:
    """Attention over the encoder's output: W queries, one set of keys and values a sentence."""
    config = attention.config
    keys, values = cross  # [B, H, S, K], [B, H, S, V]
    query = weights.cross_query(x).reshape(*x.shape[:2], config.num_heads, -1)
    query = (query * config.d_k**-0.5).astype(keys.dtype)
    hidden = jnp.where(source_segments > 0, 0.0, -1e30)[:, None, None]  # [B, 1, 1, S]

    # Products with vectors again. An accelerator takes all W in one.
    each = jax.default_backend() == "cpu" and isinstance(
        x.shape[1], int
    )  # known when it is compiled
    scores = _by_hypothesis("bhk,bhsk->bhs", query, keys, each)  # [B, W, H, S]
    shares = jax.nn.softmax(scores + hidden, axis=-1).astype(values.dtype)
    out = _by_hypothesis("bhs,bhsv->bhv", shares, values, each)  # [B, W, H, V]
    return weights.cross_out(out.reshape(*x.shape[:2], -1))


def _by_hypothesis(
    product: str, x: Float[Array, "B W H _"], of_sentence: Float[Array, "B H S _"], each: bool
) -> Float[Array, "B W H _"]:
    """The product, without W, for all W: one by one or together."""

    def multiply(x: Array) -> Array:
        return jnp.einsum(product, x, of_sentence, preferred_element_type=jnp.float32)

    if each:
        return jnp.stack([multiply(x[:, place]) for place in range(x.shape[1])], axis=1)
    return jax.vmap(multiply, in_axes=1, out_axes=1)(x)
