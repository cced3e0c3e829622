# SPDX-License-Identifier: Apache-2.0
"""What a search computes: the source once, then one position of W hypotheses of every sentence.

It is what `Transformer.encode` and `Transformer.decode` compute (figure 1), with the weights laid out
for it: projections of the same vectors are one product, and products may be in a lower precision than
float32.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.model import on_mesh

if TYPE_CHECKING:
    from transformer_jax.model.attention import MultiHeadAttention
    from transformer_jax.model.layers import FeedForward
    from transformer_jax.model.transformer import DecoderLayer, EncoderLayer, Transformer

KeysValues = tuple[Array, Array]
_LARGEST = 127.0  # of 8 bits; -128 stays unused, so that the range is symmetric
_PARTS = 254.0  # of one step, which the rest counts: from -127 to 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrix:
    """Weights of a product x W + b.

    float32   as it is
    bfloat16  both factors in bfloat16, the sums in float32
    int8      a scale for every output and for every row of x; W is scale * W1, x is step * x1
    int16     the same with what 8 bits leave: W is scale * (W1 + W2 / 254), x is step * (x1 + x2 / 254),
              and the product is that of 8-bit integers, without x2 W2: an error of about 1e-4
    """

    kernel: Any  # [OUT, IN] if `by_row`, else [IN, OUT]; W1 if it is int8.
    bias: Any  # [OUT] or None.
    rest: Any = None  # W2 if int16.
    scale: Any = None  # [OUT] float32 if int8 or int16.
    by_row: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def of(cls, kernel: Array, bias: Array | None, precision: str, *, by_row: bool = False):
        """The same weights in one of config.PRECISIONS."""
        if precision not in ("int8", "int16"):
            return cls(kernel.astype(precision), bias, by_row=by_row)
        axis = 1 if by_row else 0
        scale, first, rest = _integers(kernel, axis)
        return cls(first, bias, rest if precision == "int16" else None, scale.squeeze(axis), by_row)

    def __call__(self, x: Float[Array, "B W IN"]) -> Float[Array, "B W OUT"]:
        """x W + b in float32."""
        if self.scale is None:
            out = self._product(x.astype(self.kernel.dtype), self.kernel)
        else:
            step, first, rest = _integers(x.astype(jnp.float32), -1)
            if self.rest is None:
                out = self._product(first, self.kernel)
            else:
                both = self._product(jnp.concatenate([first, rest]), self.kernel)  # [2 B, W, OUT]
                low = both[x.shape[0] :] + self._product(first, self.rest)
                out = both[: x.shape[0]] + low / _PARTS
            out = out * step * self.scale[None, None]
        return out if self.bias is None else out + self.bias[None, None]

    def _product(self, x: Array, kernel: Array) -> Array:
        """In float32; of integers it is exact up to there."""
        dimensions = (((2,), (1 if self.by_row else 0,)), ((), ()))
        wide = jnp.int32 if kernel.dtype == jnp.int8 else jnp.float32
        out = jax.lax.dot_general(x, kernel, dimensions, preferred_element_type=wide)
        return out.astype(jnp.float32)


def _integers(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """step, first, rest, so that x is about step * (first + rest / 254); both are int8."""
    step = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1e-30) / _LARGEST
    first = jnp.round(x / step)
    rest = jnp.round((x / step - first) * _PARTS)
    return step, first.astype(jnp.int8), rest.astype(jnp.int8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderLayerWeights:
    """The matrices of an encoder layer."""

    projections: Matrix  # queries, keys and values, side by side
    out: Matrix
    expand: Matrix
    contract: Matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderLayerWeights:
    """The matrices of a decoder layer."""

    memory: Matrix  # keys and values of the encoder's output, side by side
    projections: Matrix  # queries, keys and values of self-attention, side by side
    self_out: Matrix
    cross_query: Matrix
    cross_out: Matrix
    expand: Matrix
    contract: Matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchWeights:
    """All matrices of a search."""

    encoder: Sequence[EncoderLayerWeights]
    decoder: Sequence[DecoderLayerWeights]
    vocabulary: Matrix


def search_weights(model: "Transformer", precision: str) -> SearchWeights:
    """The matrices for `read_source` and `decode_step`, in one of config.PRECISIONS."""

    def matrix(*side_by_side: Any) -> Matrix:
        kernel = jnp.concatenate([dense.kernel[...] for dense in side_by_side], axis=1)
        bias = jnp.concatenate([dense.bias[...] for dense in side_by_side])
        return Matrix.of(kernel, bias, precision)

    def of_encoder(layer: "EncoderLayer") -> EncoderLayerWeights:
        attention, feed_forward = layer.self_attention, layer.feed_forward
        return EncoderLayerWeights(
            matrix(attention.query, attention.key, attention.value),
            matrix(attention.out),
            matrix(feed_forward.expand),
            matrix(feed_forward.contract),
        )

    def of_decoder(layer: "DecoderLayer") -> DecoderLayerWeights:
        own, cross, feed_forward = layer.self_attention, layer.cross_attention, layer.feed_forward
        return DecoderLayerWeights(
            matrix(cross.key, cross.value),
            matrix(own.query, own.key, own.value),
            matrix(own.out),
            matrix(cross.query),
            matrix(cross.out),
            matrix(feed_forward.expand),
            matrix(feed_forward.contract),
        )

    embedding = model.embedding
    bias = None if embedding.bias is None else embedding.bias[...]
    return SearchWeights(
        [of_encoder(layer) for layer in model.encoder],
        [of_decoder(layer) for layer in model.decoder],
        Matrix.of(embedding.table[...], bias, precision, by_row=True),
    )


def split_heads(x: Float[Array, "B T HK"], heads: int) -> Float[Array, "B T H K"]:
    """The heads' columns, which stand together, on an axis of their own; of empty batches, too."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)


def join_heads(x: Float[Array, "B T H K"]) -> Float[Array, "B T HK"]:
    """The inverse of `split_heads`."""
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def attend_in_source(
    attention: "MultiHeadAttention",
    weights: EncoderLayerWeights,
    x: Float[Array, "B S D"],
    segments: Int[Array, "B S"],
) -> Float[Array, "B S D"]:
    """Self-attention of the encoder."""
    heads, width = attention.config.num_heads, attention.config.num_heads * attention.config.d_k
    query, key, value = (
        split_heads(part, heads).astype(x.dtype)
        for part in jnp.split(weights.projections(x), [width, 2 * width], axis=-1)
    )
    out = on_mesh.attention(
        query,
        key,
        value,
        segments,
        segments,
        causal=False,
        rate=0.0,
        rng=None,
        implementation=attention.config.attention_implementation,
    )
    return weights.out(join_heads(out))


def feed_forward(
    layer: "FeedForward",
    weights: EncoderLayerWeights | DecoderLayerWeights,
    x: Float[Array, "B W D"],
) -> Float[Array, "B W D"]:
    """Section 3.3, equation 2."""
    hidden = layer.activate(weights.expand(x).astype(x.dtype))
    return weights.contract(hidden).astype(x.dtype)


def keys_of_memory(
    attention: "MultiHeadAttention", weights: DecoderLayerWeights, memory: Float[Array, "B S D"]
) -> KeysValues:
    """What a decoder layer looks at in the encoder's output: [B, H, S, K], [B, H, S, V]."""
    heads = attention.config.num_heads
    keys, values = (
        split_heads(part, heads).astype(memory.dtype).swapaxes(1, 2)
        for part in jnp.split(weights.memory(memory), [heads * attention.config.d_k], axis=-1)
    )
    return keys, values


def attend_to_self(
    attention: "MultiHeadAttention",
    weights: DecoderLayerWeights,
    x: Float[Array, "B W D"],
    position: Int[Array, ""],
    cache: KeysValues,
) -> tuple[Float[Array, "B W D"], KeysValues]:
    """Attention over the hypothesis's own positions up to this one, which the cache gains."""
    config = attention.config
    heads, d_k, dtype = config.num_heads, config.d_k, cache[0].dtype
    query, key, value = (
        split_heads(part, heads).astype(dtype)
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
    seen = (jnp.arange(keys.shape[3]) <= position)[None, None, None]  # [1, 1, 1, L]
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bwhl,bwhlv->bwhv", shares.astype(dtype), values)
    return weights.self_out(join_heads(out)), (keys, values)


def attend_to_source(
    attention: "MultiHeadAttention",
    weights: DecoderLayerWeights,
    x: Float[Array, "B W D"],
    cross: KeysValues,
    source_segments: Int[Array, "B S"],
) -> Float[Array, "B W D"]:
    """Attention over the encoder's output: W queries, one set of keys and values a sentence."""
    config = attention.config
    keys, values = cross  # [B, H, S, K], [B, H, S, V]
    query = split_heads(weights.cross_query(x), config.num_heads)
    query = (query * config.d_k**-0.5).astype(keys.dtype)
    hidden = jnp.where(source_segments > 0, 0.0, -1e30)[:, None, None]  # [B, 1, 1, S]

    # Products with vectors again. An accelerator takes all W in one.
    each = jax.default_backend() == "cpu" and isinstance(
        x.shape[1], int
    )  # known when it is compiled
    scores = _by_hypothesis("bhk,bhsk->bhs", query, keys, each)  # [B, W, H, S]
    shares = jax.nn.softmax(scores + hidden, axis=-1).astype(values.dtype)
    out = _by_hypothesis("bhs,bhsv->bhv", shares, values, each)  # [B, W, H, V]
    return weights.cross_out(join_heads(out))


def _by_hypothesis(
    product: str, x: Float[Array, "B W H _"], of_sentence: Float[Array, "B H S _"], each: bool
) -> Float[Array, "B W H _"]:
    """The product, without W, for all W: one by one or together."""

    def multiply(x: Array) -> Array:
        return jnp.einsum(product, x, of_sentence, preferred_element_type=jnp.float32)

    if each:
        return jnp.stack([multiply(x[:, place]) for place in range(x.shape[1])], axis=1)
    return jax.vmap(multiply, in_axes=1, out_axes=1)(x)
