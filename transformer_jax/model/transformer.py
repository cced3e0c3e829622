# SPDX-License-Identifier: Apache-2.0
"""The Transformer: section 3, figure 1."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attention_kernels import backends
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.config import ModelConfig
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.model.attention import MultiHeadAttention
from transformer_jax.model.decoding import (
    DecoderLayerWeights,
    EncoderLayerWeights,
    KeysValues,
    SearchWeights,
    attend_in_source,
    attend_to_self,
    attend_to_source,
    feed_forward,
    keys_of_memory,
    search_weights,
)
from transformer_jax.model.dropout import DropoutRng, dropout, fold_in
from transformer_jax.model.embeddings import Embedding
from transformer_jax.model.layers import FeedForward, Residual, layer_norm


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that config.model.dtype means here.

    "auto" is bfloat16 on TPUs, and on GPUs but NVIDIA's below compute capability 8.0, which have no
    products of it; elsewhere float32.
    """
    if name == "auto":
        device = backends.device()
        has_products = device.platform == "tpu" or (
            device.platform == "gpu" and (device.capability or (8, 0)) >= (8, 0)
        )
        name = "bfloat16" if has_products else "float32"
    return jnp.dtype(name)


class EncoderLayer(nnx.Module):
    """One encoder layer: figure 1 (left), section 3.1."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """Two sublayers."""
        self.self_attention = MultiHeadAttention(config, dtype, rngs=rngs)
        self.self_attention_residual = Residual(config, dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype, rngs=rngs)
        self.feed_forward_residual = Residual(config, dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B S D"], segments: Int[Array, "B S"], rng: DropoutRng | None
    ) -> Float[Array, "B S D"]:
        """Self-attention within each segment, then the feed-forward."""
        x = self.self_attention_residual(
            x,
            lambda y: self.self_attention(y, y, segments, segments, rng=fold_in(rng, 0)),
            fold_in(rng, 1),
        )
        return self.feed_forward_residual(
            x, lambda y: self.feed_forward(y, rng=fold_in(rng, 2)), fold_in(rng, 3)
        )

    def read(
        self, x: Float[Array, "B S D"], segments: Int[Array, "B S"], weights: EncoderLayerWeights
    ) -> Float[Array, "B S D"]:
        """The same for a search, in its precision."""
        dtype = x.dtype

        def self_attention(y: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
            return attend_in_source(self.self_attention, weights, y, segments).astype(dtype)

        x = self.self_attention_residual(x, self_attention, None)
        return self.feed_forward_residual(
            x, partial(feed_forward, self.feed_forward, weights), None
        )


class DecoderLayer(nnx.Module):
    """One decoder layer: figure 1 (right), section 3.1."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """Three sublayers."""
        self.self_attention = MultiHeadAttention(config, dtype, rngs=rngs)
        self.self_attention_residual = Residual(config, dtype, rngs=rngs)
        self.cross_attention = MultiHeadAttention(config, dtype, rngs=rngs)
        self.cross_attention_residual = Residual(config, dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype, rngs=rngs)
        self.feed_forward_residual = Residual(config, dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        target_segments: Int[Array, "B T"],
        source_segments: Int[Array, "B S"],
        rng: DropoutRng | None,
    ) -> Float[Array, "B T D"]:
        """Causal self-attention, attention over the encoder's output, feed-forward."""
        x = self.self_attention_residual(
            x,
            lambda y: self.self_attention(
                y, y, target_segments, target_segments, causal=True, rng=fold_in(rng, 0)
            ),
            fold_in(rng, 1),
        )
        x = self.cross_attention_residual(
            x,
            lambda y: self.cross_attention(
                y, memory, target_segments, source_segments, rng=fold_in(rng, 2)
            ),
            fold_in(rng, 3),
        )
        return self.feed_forward_residual(
            x, lambda y: self.feed_forward(y, rng=fold_in(rng, 4)), fold_in(rng, 5)
        )

    def step(
        self,
        x: Float[Array, "B W D"],
        position: Int[Array, ""],
        cache: KeysValues,
        cross: KeysValues,
        source_segments: Int[Array, "B S"],
        weights: DecoderLayerWeights,
    ) -> tuple[Float[Array, "B W D"], KeysValues]:
        """One position of W hypotheses a sentence; `cache` gains the position's keys and values."""
        dtype = x.dtype

        def self_attention(y: Float[Array, "B W D"]) -> Float[Array, "B W D"]:
            nonlocal cache
            out, cache = attend_to_self(self.self_attention, weights, y, position, cache)
            return out.astype(dtype)

        def cross_attention(y: Float[Array, "B W D"]) -> Float[Array, "B W D"]:
            out = attend_to_source(self.cross_attention, weights, y, cross, source_segments)
            return out.astype(dtype)

        x = self.self_attention_residual(x, self_attention, None)
        x = self.cross_attention_residual(x, cross_attention, None)
        x = self.feed_forward_residual(x, partial(feed_forward, self.feed_forward, weights), None)
        return x, cache


def _rematerialised(
    layers: Sequence[Any],
    x: Float[Array, "B T D"],
    *others: Any,
    rng: DropoutRng | None,
    place: int,
) -> Float[Array, "B T D"]:
    """The layers in a loop, of which the backward pass is given each layer's input and nothing else.

    A loop, because XLA chooses the order of what is not in one: it puts the gradients of the weights
    last, and until then holds all that was computed again for them.
    """
    structure = nnx.split(layers[0])[0]
    weights = jax.tree.map(lambda *of: jnp.stack(of), *(nnx.split(layer)[1] for layer in layers))
    places = place + 2 * jnp.arange(len(layers))

    def layer(x: Array, own: tuple[Any, Array]) -> tuple[Array, None]:
        weights, place = own
        return nnx.merge(structure, weights)(x, *others, fold_in(rng, place)), None

    return jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, (weights, places))[0]


class Encoder(nnx.List):
    """A list of N encoder layers: figure 1 (left), section 3.1.

    In a pre-norm model (not the paper's) the output of the last layer is not normalised yet;
    `Transformer.encoder_norm` does that.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Random weights, from the stream `params` of rngs."""
        dtype = compute_dtype(config.dtype)
        # Unrolled, not scanned over: steps are 3 to 6 % faster, and compiling takes 3 to 5 s longer.
        layers = range(config.num_layers)
        super().__init__([EncoderLayer(config, dtype, rngs=rngs) for _ in layers])

    def __call__(
        self,
        x: Float[Array, "B S D"],
        segments: Int[Array, "B S"],
        *,
        rng: DropoutRng | None = None,
        remat: bool = False,
    ) -> Float[Array, "B S D"]:
        """One layer after the other.

        Args:
          x: embeddings with their positions.
          segments: 0 is padding; a token sees those of its own segment.
          rng: for dropout, in training.
          remat: of each layer only the input is kept for the backward pass.
        """
        if remat:
            return _rematerialised(self, x, segments, rng=rng, place=2)
        for number, layer in enumerate(self):
            x = layer(x, segments, fold_in(rng, 2 + 2 * number))
        return x


class Decoder(nnx.List):
    """A list of N decoder layers: figure 1 (right), section 3.1.

    As in `Encoder` a pre-norm model's output is normalised by `Transformer.decoder_norm`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Random weights, from the stream `params` of rngs."""
        dtype = compute_dtype(config.dtype)
        layers = range(config.num_layers)
        super().__init__([DecoderLayer(config, dtype, rngs=rngs) for _ in layers])

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        target_segments: Int[Array, "B T"],
        source_segments: Int[Array, "B S"],
        *,
        rng: DropoutRng | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """One layer after the other.

        Args:
          x: embeddings with their positions, shifted by one: place t holds token t - 1.
          memory: the encoder's output.
          target_segments: 0 is padding; a token sees itself and those to the left in its segment.
          source_segments: of `memory`; a token sees the source of its own segment.
          rng: for dropout, in training.
          remat: of each layer only the inputs are kept for the backward pass.
        """
        if remat:
            others = (memory, target_segments, source_segments)
            return _rematerialised(self, x, *others, rng=rng, place=3)
        for number, layer in enumerate(self):
            x = layer(x, memory, target_segments, source_segments, fold_in(rng, 3 + 2 * number))
        return x


class Transformer(nnx.Module):
    """Encoder and decoder over one shared embedding: section 3, figure 1.

    Evaluation is the default; training passes `rng`. Weights are float32, the computation runs in
    config.dtype, logits are float32.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Random weights, from the stream `params` of rngs."""
        dtype = compute_dtype(config.dtype)
        self.config = config
        self.deterministic: bool | None = None  # see dropout.evaluated
        self.embedding = Embedding(config, dtype, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        # Post-norm ends every layer with a normalisation; pre-norm needs one more at the end.
        pre = config.norm_position == "pre"
        self.encoder_norm = layer_norm(config, dtype, rngs=rngs) if pre else None
        self.decoder_norm = layer_norm(config, dtype, rngs=rngs) if pre else None

    def __call__(self, batch: Batch, *, rng: DropoutRng | None = None) -> Float[Array, "B T VOCAB"]:
        """Logits of every target token, given the source and the target tokens before it."""
        return self.logits(self.hidden(batch, rng=rng))

    def hidden(
        self, batch: Batch, *, rng: DropoutRng | None = None, remat: bool = False
    ) -> Float[Array, "B T D"]:
        """The decoder's output, which `logits` projects on the vocabulary.

        `remat`: of each layer only the input is kept for the backward pass, the rest is computed again.
        """
        memory = self.encode(batch.source, rng=rng, remat=remat)
        segments = batch.source.segments
        return self.decode(batch.target, memory, segments, rng=rng, remat=remat)

    def encode(
        self, source: Tokens, *, rng: DropoutRng | None = None, remat: bool = False
    ) -> Float[Array, "B S D"]:
        """The encoder's output for the source tokens."""
        x = self._with_positions(self.embedding.embed(source.ids), source.positions)
        x = self._dropout(x, fold_in(rng, 0))
        x = self.encoder(x, source.segments, rng=rng, remat=remat)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(
        self,
        target: Tokens,
        memory: Float[Array, "B S D"],
        source_segments: Int[Array, "B S"],
        *,
        rng: DropoutRng | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """The decoder's output at every target token, from the tokens to its left."""
        shifted = jnp.pad(self.embedding.embed(target.ids), ((0, 0), (1, 0), (0, 0)))[:, :-1]
        first = target.positions[..., None] == 0  # a sentence's first input is the same for all
        start = self.embedding.start(shifted.dtype)[None, None]
        x = self._with_positions(jnp.where(first, start, shifted), target.positions)
        x = self._dropout(x, fold_in(rng, 1))
        x = self.decoder(x, memory, target.segments, source_segments, rng=rng, remat=remat)
        return x if self.decoder_norm is None else self.decoder_norm(x)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... VOCAB"]:
        """Scores of every vocabulary entry, before the softmax; float32."""
        return self.embedding.logits(hidden)

    def cross_cache(self, memory: Float[Array, "B S D"]) -> list[KeysValues]:
        """Every decoder layer's keys and values of the encoder's output, made once a sentence.

        Each [B, H, S, K or V].
        """
        both = [layer.cross_attention.project_keys(memory) for layer in self.decoder]
        return [(keys.swapaxes(1, 2), values.swapaxes(1, 2)) for keys, values in both]

    def read_source(self, source: Tokens, weights: SearchWeights) -> list[KeysValues]:
        """What `cross_cache` makes of `encode`'s output, computed with a search's weights."""
        x = self._with_positions(self.embedding.embed(source.ids), source.positions)
        for encoder_layer, of_encoder in zip(self.encoder, weights.encoder, strict=True):
            x = encoder_layer.read(x, source.segments, of_encoder)
        x = x if self.encoder_norm is None else self.encoder_norm(x)
        return [
            keys_of_memory(layer.cross_attention, of_decoder, x)
            for layer, of_decoder in zip(self.decoder, weights.decoder, strict=True)
        ]

    def empty_cache(self, batch: int, width: int, length: int) -> list[KeysValues]:
        """Room for `length` positions of `width` hypotheses a sentence, each [B, W, H, L, K or V]."""
        config, dtype = self.config, compute_dtype(self.config.dtype)
        shape = (batch, width, config.num_heads, length)
        return [
            (jnp.zeros((*shape, config.d_k), dtype), jnp.zeros((*shape, config.d_v), dtype))
            for _ in self.decoder
        ]

    def search_weights(self, precision: str | None = None) -> SearchWeights:
        """The weights of a search, in one of config.PRECISIONS, by default in the compute dtype.

        Made once, outside the search's loop.
        """
        return search_weights(self, precision or compute_dtype(self.config.dtype).name)

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        position: Int[Array, ""],
        cache: list[KeysValues],
        cross: list[KeysValues],
        source_segments: Int[Array, "B S"],
        weights: SearchWeights | None = None,
    ) -> tuple[Float[Array, "B W VOCAB"], list[KeysValues]]:
        """Logits of the token at `position`, given the tokens before it.

        Args:
          ids: the tokens at position - 1; ignored at position 0, whose input is the start vector.
          position: the same for all hypotheses.
          cache: keys and values of the earlier positions, from `empty_cache` or the last step.
          cross: from `cross_cache`, or from `read_source` with the same weights.
          source_segments: 0 where the source is padding.
          weights: from `search_weights`, by default its default.
        """
        weights = weights or self.search_weights()
        x = self.embedding.embed(ids)
        x = jnp.where(position == 0, self.embedding.start(x.dtype)[None, None], x)
        longest = cache[0][0].shape[3]
        x = self._with_positions(x, jnp.broadcast_to(position, ids.shape), longest)
        new_cache = []
        for layer, *entries in zip(self.decoder, cache, cross, weights.decoder, strict=True):
            keys_values, cross_keys_values, of_layer = entries
            x, keys_values = layer.step(
                x, position, keys_values, cross_keys_values, source_segments, of_layer
            )
            new_cache.append(keys_values)
        x = x if self.decoder_norm is None else self.decoder_norm(x)
        return weights.vocabulary(x), new_cache

    def _dropout(self, x: Float[Array, "B T D"], rng: DropoutRng | None) -> Float[Array, "B T D"]:
        return dropout(x, self.config.dropout, rng, deterministic=self.deterministic)

    def _with_positions(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], longest: int | None = None
    ) -> Float[Array, "B T D"]:
        return x + self.embedding.encode_positions(positions, longest or positions.shape[1])
