# SPDX-License-Identifier: Apache-2.0
"""The training loss: label-smoothed cross-entropy, section 5.4."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from attention_kernels import CrossEntropySums, linear_cross_entropy
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from transformer_jax.config import TrainConfig
from transformer_jax.data.batch import Batch
from transformer_jax.model.noise import Noise
from transformer_jax.model.on_mesh import BATCH_AXES
from transformer_jax.model.transformer import Transformer

Scalar = Float[Array, ""]


class LossSums(NamedTuple):
    """Sums over target tokens; every mean is a quotient of sums over the whole mesh."""

    loss: Scalar  # label-smoothed
    negative_log_likelihood: Scalar  # without smoothing
    correct: Scalar  # tokens that the model would have chosen
    tokens: Scalar  # how many target tokens


class Means(NamedTuple):
    """What sums over many batches come to, on the host."""

    loss: float
    perplexity: float  # without smoothing, per token
    accuracy: float

    @classmethod
    def of(cls, batches: Iterable[LossSums]) -> "Means":
        """The means over all tokens of these batches; NaN if there are none."""
        sums = np.array(jax.device_get(list(batches)), np.float64).reshape(-1, 4).sum(axis=0)
        loss, nll, correct, tokens = sums.tolist()
        if not tokens:
            return cls(math.nan, math.nan, math.nan)
        return cls(loss / tokens, float(np.exp(nll / tokens)), correct / tokens)


def loss_sums(
    model: Transformer,
    batch: Batch,
    mesh: Mesh,
    *,
    label_smoothing: float,
    logits_chunk: int = 0,
    noise: Noise | None = None,
    remat: bool = False,
) -> LossSums:
    """The loss of a batch; its first field has the gradient.

    Each device projects its own rows on the vocabulary and sums over them, at most `logits_chunk`
    tokens at a time (0: all of them at once).
    """

    def on_each_device(hidden: Array, embedding: Array, labels: Array, weights: Array):
        sums = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            jax.lax.pcast(embedding, BATCH_AXES, to="varying"),
            labels.reshape(-1),
            label_smoothing=label_smoothing,
            weights=weights.reshape(-1),
            chunk=logits_chunk,
        )
        return jax.lax.psum(sums, BATCH_AXES)

    rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    hidden = model.hidden(batch, noise=noise, remat=remat)
    weights = (batch.target.segments > 0).astype(jnp.float32)
    sums: CrossEntropySums = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(rows, whole, rows, rows), out_specs=whole
    )(hidden, model.embedding.table[...], batch.target.ids, weights)
    return LossSums(*sums, tokens=weights.sum())


def training_loss(
    model: Transformer, batch: Batch, mesh: Mesh, config: TrainConfig, noise: Noise
) -> LossSums:
    """The loss that training minimises."""
    return loss_sums(
        model,
        batch,
        mesh,
        label_smoothing=config.label_smoothing,
        logits_chunk=config.logits_chunk,
        noise=noise,
        remat=config.remat,
    )
