# SPDX-License-Identifier: Apache-2.0
"""The training loss: label-smoothed cross-entropy, section 5.4."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transformer_jax.config import TrainConfig
from transformer_jax.data.batch import Batch
from transformer_jax.model import on_mesh
from transformer_jax.model.dropout import DropoutRng
from transformer_jax.model.transformer import Transformer

Scalar = Float[Array, ""]


class LossSums(NamedTuple):
    """Sums over target tokens; every mean is a quotient of sums over the whole mesh."""

    loss: Scalar  # label-smoothed
    negative_log_likelihood: Scalar  # without smoothing
    correct: Scalar  # tokens that the model would have chosen
    tokens: Scalar  # how many target tokens
    source_tokens: Scalar


class Means(NamedTuple):
    """What sums over many batches come to, on the host."""

    loss: float
    perplexity: float  # without smoothing, per token
    accuracy: float

    @classmethod
    def of(cls, batches: Iterable[LossSums]) -> "Means":
        """The means over all tokens of these batches; NaN if there are none."""
        sums = np.array(jax.device_get(list(batches)), np.float64).reshape(-1, 5).sum(axis=0)
        loss, nll, correct, tokens, _ = sums.tolist()
        if not tokens:
            return cls(math.nan, math.nan, math.nan)
        return cls(loss / tokens, float(np.exp(nll / tokens)), correct / tokens)


def loss_sums(
    model: Transformer,
    batch: Batch,
    *,
    label_smoothing: float,
    logits_chunk: int = 0,
    rng: DropoutRng | None = None,
    remat: bool = False,
) -> LossSums:
    """The loss of a batch; its first field has the gradient.

    At most `logits_chunk` tokens are projected on the vocabulary at a time (0: all of them at once).
    """
    hidden = model.hidden(batch, rng=rng, remat=remat)
    weights = (batch.target.segments > 0).astype(jnp.float32)
    bias = model.embedding.bias
    sums = on_mesh.linear_cross_entropy(
        hidden,
        model.embedding.table[...],
        None if bias is None else bias[...],
        batch.target.ids,
        weights,
        label_smoothing=label_smoothing,
        chunk=logits_chunk,
    )
    source_tokens = (batch.source.segments > 0).sum(dtype=jnp.float32)
    return LossSums(*sums, tokens=weights.sum(), source_tokens=source_tokens)


def training_loss(
    model: Transformer, batch: Batch, config: TrainConfig, rng: DropoutRng
) -> LossSums:
    """The loss that training minimises."""
    return loss_sums(
        model,
        batch,
        label_smoothing=config.label_smoothing,
        logits_chunk=config.logits_chunk,
        rng=rng,
        remat=config.remat,
    )
