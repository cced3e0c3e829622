# SPDX-License-Identifier: Apache-2.0
"""What a model says of translations that are there already: each token's probability, and alignments.

One pass over source and target, without a search; equation 1 of section 3.2.1 gives the weights of
which alignments are made.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from transformer_jax.data.batch import EOS, Batch, Tokens
from transformer_jax.inference.devices import by_rows
from transformer_jax.inference.ensemble import Ensemble
from transformer_jax.inference.padding import group_by_length, pad
from transformer_jax.model.attention import MultiHeadAttention
from transformer_jax.model.transformer import Transformer

_LOGITS_ROWS = 8  # the logits of so many rows exist at a time


@dataclasses.dataclass(frozen=True)
class Forced:
    """What the model says of one target sentence of T tokens, EOS included."""

    log_probs: Float[np.ndarray, " T"]  # of each token, given the source and the tokens before it
    looked_at: Int[np.ndarray, " T"] | None  # the source token that each was aligned to


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Sentence pairs that are computed together."""

    members: list[int]  # the pairs' numbers; rows behind them are padding
    batch: Batch


def pair_batches(
    pairs: Sequence[tuple[list[int], list[int]]],
    batch_tokens: int,
    *,
    rows_multiple: int = 1,
) -> Iterator[PairBatch]:
    """Every pair in one batch, in few shapes of about `batch_tokens` positions a side."""
    lengths = [max(map(len, pair)) for pair in pairs]
    for group in group_by_length(lengths, batch_tokens, rows_multiple=rows_multiple):
        source, target = (
            pad([pairs[index][side] for index in group.members], group.rows, group.length)
            for side in (0, 1)
        )
        yield PairBatch(group.members, Batch(source, target, np.arange(group.rows, dtype=np.int32)))


def force(
    params: Any,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    structure: nnx.GraphDef,
    batch_tokens: int,
    mesh: Mesh | None = None,
    aligned: bool = False,
) -> list[Forced]:
    """What the model says of each pair of token ids, EOS at the end of both."""
    found: list[Any] = [None] * len(pairs)
    ways = mesh.size if mesh else 1
    for group in pair_batches(pairs, batch_tokens, rows_multiple=ways):
        source, target = group.batch.source, group.batch.target
        log_probs, looked_at = jax.device_get(
            _force(params, source, target, structure=structure, mesh=mesh, aligned=aligned)
        )
        for row, index in enumerate(group.members):
            size = len(pairs[index][1])
            aligned_to = None if looked_at is None else looked_at[row, :size]
            found[index] = Forced(log_probs[row, :size], aligned_to)
    return found


@partial(jax.jit, static_argnames=("structure", "mesh", "aligned"))
def _force(
    params: Any,
    source: Tokens,
    target: Tokens,
    *,
    structure: nnx.GraphDef,
    mesh: Mesh | None,
    aligned: bool,
) -> tuple[Float[Array, "B T"], Int[Array, "B T"] | None]:
    """Log-probabilities of the target's tokens, and the source token that each looked at most."""

    def force(params: Any, rows: tuple[Tokens, Tokens]) -> tuple[Array, Array | None]:
        source, target = rows
        model = nnx.merge(structure, params)
        watched = _watch(model) if aligned else []
        hidden = model.decode(target, model.encode(source), source.segments)

        def of_row(row: tuple[Any, Array]) -> Array:
            log_probs = jax.nn.log_softmax(model.logits(row[0]))  # [T, VOCAB]
            return jnp.take_along_axis(log_probs, row[1][:, None], axis=-1)[:, 0]

        log_probs = jax.lax.map(of_row, (hidden, target.ids), batch_size=_LOGITS_ROWS)
        if not watched:
            return log_probs, None
        weights = sum(layer.weights for layer in watched)  # [B, T, S]
        # A source's EOS is where attention goes that looks for nothing; it is no word.
        weights = jnp.where((source.ids == EOS)[:, None], 0.0, weights)
        return log_probs, jnp.argmax(weights, axis=-1).astype(jnp.int32)

    return by_rows(force, mesh, params, (source, target))


class _Watched:
    """Cross-attention that keeps what it looked at: `weights` [B, T, S], the mean of its heads."""

    def __init__(self, attention: MultiHeadAttention):
        self._attention = attention
        self.weights: Any = None

    def __call__(
        self, x: Array, memory: Array, query_segments: Array, key_segments: Array, **options: Any
    ) -> Array:
        heads = self._attention.weights(x, memory, query_segments, key_segments)
        self.weights = heads.mean(axis=1)
        return self._attention(x, memory, query_segments, key_segments, **options)


def _watch(model: Transformer | Ensemble) -> list[_Watched]:
    """From now on the model, or each of an ensemble, keeps the weights that alignments are made of.

    They are those of the last two layers: the last but one aligns best in six-layer models (Garg et al.
    2019, arXiv 1909.02074), the last in a four-layer one of ours, where both together do no worse.
    """
    watched = []
    for member in model.models if isinstance(model, Ensemble) else [model]:
        for layer in member.decoder[-2:]:
            watched.append(_Watched(layer.cross_attention))
            layer.cross_attention = watched[-1]  # type: ignore[assignment]
    return watched
