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
from transformer_jax.model.on_mesh import BATCH_AXES, HEADS_AXIS
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
    mesh: Mesh,
    *,
    label_smoothing: float,
    logits_chunk: int = 0,
    noise: Noise | None = None,
    remat: bool = False,
) -> LossSums:
    """The loss of a batch; its first field has the gradient.

    Each device projects its own rows on the vocabulary and sums over them, at most `logits_chunk`
    tokens at a time (0: all of them at once). Devices along `tensor`, which hold the same rows, take
    a part of the positions each: that splits the work as evenly as parts of the vocabulary would,
    and needs no maximum or sum across devices in the middle of the softmax.
    """
    ways = mesh.shape[HEADS_AXIS]
    splits = ways > 1 and batch.target.ids.shape[1] % ways == 0
    axes = (*BATCH_AXES, HEADS_AXIS) if splits else BATCH_AXES

    def on_each_device(
        hidden: Array, embedding: Array, bias: Array | None, labels: Array, weights: Array
    ):
        embedding, bias = jax.lax.pcast((embedding, bias), axes, to="varying")
        sums = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            embedding,
            labels.reshape(-1),
            bias=bias,
            label_smoothing=label_smoothing,
            weights=weights.reshape(-1),
            chunk=logits_chunk,
        )
        return jax.lax.psum(sums, axes)

    tokens = PartitionSpec(BATCH_AXES, HEADS_AXIS if splits else None)
    whole = PartitionSpec()
    hidden = model.hidden(batch, noise=noise, remat=remat)
    weights = (batch.target.segments > 0).astype(jnp.float32)
    bias = None if model.embedding.bias is None else model.embedding.bias[...]
    sums: CrossEntropySums = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(tokens, whole, whole, tokens, tokens), out_specs=whole
    )(hidden, model.embedding.table[...], bias, batch.target.ids, weights)
    source_tokens = (batch.source.segments > 0).sum(dtype=jnp.float32)
    return LossSums(*sums, tokens=weights.sum(), source_tokens=source_tokens)


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
