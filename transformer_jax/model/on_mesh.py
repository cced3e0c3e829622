# SPDX-License-Identifier: Apache-2.0
"""The kernels on a mesh: each device computes its own rows and heads of the batch.

XLA splits its own operations over devices, and does it well; a kernel needs `jax.shard_map`. Rows and
heads keep their global numbers, so that dropout is the same on every mesh. Which mesh, tells the
context: the training step's `jax.sharding.use_abstract_mesh`; without one, or where a caller has split
the computation already, there is nothing to do.
"""

import attention_kernels
import jax
from jax.sharding import AxisType, PartitionSpec
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
    implementation: str | None = None,
) -> Float[Array, "B T H V"]:
    """`attention_kernels.attention`, with dropout where there is an rng."""
    implementation = implementation or attention_kernels.choose_attention(query, key, value)
    sizes = {} if implementation == "xla" else _free_axes()
    # Heads that the axis does not divide stay together, on every device of it.
    splits = HEADS_AXIS in sizes and query.shape[2] % sizes[HEADS_AXIS] == 0
    heads_axis = HEADS_AXIS if splits else None

    def on_each_device(query, key, value, query_segments, key_segments, seed, row_ids):
        return attention_kernels.attention(
            query,
            key,
            value,
            query_segments=query_segments,
            key_segments=key_segments,
            causal=causal,
            dropout_rate=0.0 if rng is None else rate,
            dropout_seed=seed,
            row_ids=row_ids,
            head_offset=jax.lax.axis_index(heads_axis) * query.shape[2] if heads_axis else 0,
            implementation=implementation,
        )

    arguments = query, key, value, query_segments, key_segments, *_seed_and_rows(rng)
    if not sizes:
        return on_each_device(*arguments)
    rows, whole = PartitionSpec(_batch_axes(sizes)), PartitionSpec()
    heads = PartitionSpec(_batch_axes(sizes), None, heads_axis)
    return jax.shard_map(
        on_each_device,
        in_specs=(heads, heads, heads, rows, rows, whole, rows),
        out_specs=heads,
        check_vma=False,  # the interpreter of kernels does not follow which axes a value varies over
    )(*arguments)


def dropout_add_layer_norm(
    x: Float[Array, "B T D"],
    residual: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    *,
    rate: float,
    eps: float,
    rng: DropoutRng | None,
    implementation: str | None = None,
) -> Float[Array, "B T D"]:
    """`attention_kernels.dropout_add_layer_norm`, with dropout where there is an rng."""
    sizes = _free_axes()

    def on_each_device(x, residual, scale, bias, seed, row_ids):
        return attention_kernels.dropout_add_layer_norm(
            x,
            residual,
            scale,
            bias,
            rate=0.0 if rng is None else rate,
            seed=seed,
            row_ids=row_ids,
            eps=eps,
            implementation="xla" if sizes else implementation,
        )

    arguments = x, residual, scale, bias, *_seed_and_rows(rng)
    if not sizes:
        return on_each_device(*arguments)
    # Devices along `tensor` all do the same here: that is where Megatron-LM adds up what they have of x,
    # and of its gradient. XLA, left to itself, would split positions, and gather weights and activations
    # in turn; without its own implementation it would add up gradients that are the same everywhere.
    rows, whole = PartitionSpec(_batch_axes(sizes)), PartitionSpec()
    return jax.shard_map(
        on_each_device, in_specs=(rows, rows, whole, whole, whole, rows), out_specs=rows
    )(*arguments)


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
    """`attention_kernels.linear_cross_entropy` of all tokens of a batch.

    Devices along `tensor`, which have the same rows, take a part of the positions each: that splits
    the work as evenly as parts of the vocabulary would, and needs no maximum or sum across devices in
    the middle of the softmax.
    """
    sizes = _free_axes()
    splits = HEADS_AXIS in sizes and labels.shape[1] % sizes[HEADS_AXIS] == 0
    axes = (*_batch_axes(sizes), *([HEADS_AXIS] if splits else []))

    def on_each_device(hidden, embedding, bias, labels, weights):
        embedding, bias = jax.lax.pcast((embedding, bias), axes, to="varying")
        sums = attention_kernels.linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            embedding,
            labels.reshape(-1),
            bias=bias,
            label_smoothing=label_smoothing,
            weights=weights.reshape(-1),
            chunk=chunk,
        )
        return jax.lax.psum(sums, axes)

    arguments = hidden, embedding, bias, labels, weights
    if not sizes:
        return on_each_device(*arguments)
    tokens = PartitionSpec(_batch_axes(sizes), HEADS_AXIS if splits else None)
    whole = PartitionSpec()
    specs = tokens, whole, whole, tokens, tokens
    return jax.shard_map(on_each_device, in_specs=specs, out_specs=whole)(*arguments)


def _free_axes() -> dict[str, int]:
    """The axes of the context's mesh that nobody has split anything over yet, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and size > 1
    }


def _batch_axes(sizes: dict[str, int]) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH_AXES if axis in sizes)


def _seed_and_rows(rng: DropoutRng | None) -> tuple[Array | None, Array | None]:
    return (None, None) if rng is None else (rng.seed, rng.rows)
