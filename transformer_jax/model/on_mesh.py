# SPDX-License-Identifier: Apache-2.0
"""The kernels on this project's mesh, with dropout where there is an rng.

Which mesh, tells the context: the training step's `jax.sharding.use_abstract_mesh`. Without one, and in
a search, whose mesh has other axes, there is nothing to split: see `attention_kernels/sharded.py`.
"""

from typing import Any

import attention_kernels
import jax
from jaxtyping import Array, Float, Int

from transformer_jax.model.dropout import DropoutRng

BATCH_AXES = ("data", "fsdp")  # split the rows of a batch
HEADS_AXIS = "tensor"


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    *,
    causal: bool,
    rate: float,
    rng: DropoutRng | None,
    implementation: str = "auto",
) -> Float[Array, "B T H V"]:
    """`attention_kernels.attention` on the mesh; `implementation`: config.model's."""
    return attention_kernels.sharded_attention(
        query,
        key,
        value,
        batch_axes=_batch_axes(),
        heads_axis=_heads_axis(),
        query_segments=query_segments,
        key_segments=key_segments,
        causal=causal,
        implementation=None if implementation == "auto" else implementation,
        **({} if rng is None else _dropout("dropout_rate", "dropout_seed", rate, rng)),
    )


def dropout_add_layer_norm(
    x: Float[Array, "B T D"],
    residual: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    *,
    rate: float,
    eps: float,
    rng: DropoutRng | None,
) -> Float[Array, "B T D"]:
    """`attention_kernels.dropout_add_layer_norm` on the mesh."""
    return attention_kernels.sharded_dropout_add_layer_norm(
        x,
        residual,
        scale,
        bias,
        batch_axes=_batch_axes(),
        eps=eps,
        **({} if rng is None else _dropout("rate", "seed", rate, rng)),
    )


def linear_cross_entropy(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "VOCAB D"],
    bias: Float[Array, " VOCAB"] | None,
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    label_smoothing: float,
    chunk: int,
) -> attention_kernels.CrossEntropySums:
    """`attention_kernels.linear_cross_entropy` of all tokens of a batch, on the mesh."""
    return attention_kernels.sharded_linear_cross_entropy(
        hidden,
        embedding,
        labels,
        batch_axes=_batch_axes(),
        positions_axis=_heads_axis(),
        bias=bias,
        label_smoothing=label_smoothing,
        weights=weights,
        chunk=chunk,
    )


def _batch_axes() -> tuple[str, ...]:
    names = jax.sharding.get_abstract_mesh().axis_names
    return tuple(axis for axis in BATCH_AXES if axis in names)


def _heads_axis() -> str | None:
    return HEADS_AXIS if HEADS_AXIS in jax.sharding.get_abstract_mesh().axis_names else None


def _dropout(rate_name: str, seed_name: str, rate: float, rng: DropoutRng) -> dict[str, Any]:
    return {rate_name: rate, seed_name: rng.seed, "row_ids": rng.rows}
