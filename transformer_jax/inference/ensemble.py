# SPDX-License-Identifier: Apache-2.0
"""Several models that translate as one: at every token the mean of their probabilities."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.data.batch import Tokens
from transformer_jax.model.decoding import SearchWeights
from transformer_jax.model.transformer import Transformer


class Ensemble(nnx.Module):
    """Models of one vocabulary, of any sizes, with the functions of a `Transformer` that a search needs.

    What those return is the same with a list, one entry a model, in the place of an array; logits are
    the logarithms of probabilities.
    """

    def __init__(self, models: Sequence[Transformer]):
        """`models`: one or more, of one vocabulary."""
        self.models = nnx.List(models)

    def encode(self, source: Tokens) -> list[Float[Array, "B S D"]]:
        """Each encoder's output."""
        return [model.encode(source) for model in self.models]

    def decode(
        self, target: Tokens, memory: list[Any], source_segments: Int[Array, "B S"]
    ) -> list[Float[Array, "B T D"]]:
        """Each decoder's output at every target token."""
        return [
            model.decode(target, entry, source_segments)
            for model, entry in zip(self.models, memory, strict=True)
        ]

    def logits(self, hidden: list[Any]) -> Float[Array, "... VOCAB"]:
        """log of the mean probability of every vocabulary entry, from the output of `decode`."""
        pairs = zip(self.models, hidden, strict=True)
        return log_mean([model.logits(entry) for model, entry in pairs])

    def cross_cache(self, memory: list[Any]) -> list[Any]:
        """Each model's keys and values of its encoder's output."""
        return [model.cross_cache(entry) for model, entry in zip(self.models, memory, strict=True)]

    def empty_cache(self, batch: int, width: int, length: int) -> list[Any]:
        """Room for each model's keys and values, [B, W, H, L, ...]."""
        return [model.empty_cache(batch, width, length) for model in self.models]

    def search_weights(self, precision: str | None = None) -> list[SearchWeights]:
        """Each model's weights for `decode_step`."""
        return [model.search_weights(precision) for model in self.models]

    def read_source(self, source: Tokens, weights: list[SearchWeights]) -> list[Any]:
        """Each model's keys and values of the source."""
        pairs = zip(self.models, weights, strict=True)
        return [model.read_source(source, of_model) for model, of_model in pairs]

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        position: Int[Array, ""],
        cache: list[Any],
        cross: list[Any],
        source_segments: Int[Array, "B S"],
        weights: list[SearchWeights] | None = None,
    ) -> tuple[Float[Array, "B W VOCAB"], list[Any]]:
        """log of the mean probability of the token at `position`, given the tokens before it."""
        weights = weights or self.search_weights()
        logits, caches = zip(
            *(
                model.decode_step(ids, position, own, others, source_segments, of_model)
                for model, own, others, of_model in zip(
                    self.models, cache, cross, weights, strict=True
                )
            ),
            strict=True,
        )
        return log_mean(logits), list(caches)


def log_mean(logits: Sequence[Float[Array, "... VOCAB"]]) -> Float[Array, "... VOCAB"]:
    """log of the mean of softmax(logits) over the models."""
    log_probs = jnp.stack([jax.nn.log_softmax(entry) for entry in logits])
    return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(logits))
