# SPDX-License-Identifier: Apache-2.0
"""The kernels on a mesh: each device computes its own rows and heads of the batch.

XLA splits its own operations over devices, and does it well; a kernel needs `jax.shard_map`. Rows and
heads keep their global numbers, so that dropout is the same on every mesh.

The mesh is the context's (`jax.set_mesh`, `jax.sharding.use_abstract_mesh`). Without one, on axes of one
device, and on those that a `jax.shard_map` around has split already, there is nothing to do, and the
function is called as it is. The axes are named by the caller:

    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)):
        out = sharded_attention(query, key, value, batch_axes=("data",), heads_axis="model", causal=True)
"""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from attention_kernels import backends
from attention_kernels.attention import IN_XLA, attention, choose_attention
from attention_kernels.checks import check_floats, check_integers
from attention_kernels.cross_entropy import CrossEntropySums, linear_cross_entropy
from attention_kernels.dropout import as_seed
from attention_kernels.layer_norm import check_sublayer, dropout_add_layer_norm
from attention_kernels.options import Arguments, make_inputs

_PER_ROW = ("query_segments", "key_segments", "query_offset", "row_ids")  # options, if not scalars
_WHOLE = ("dropout_seed", "scale")
_CHECKED = ("query_segments", "key_segments", "query_offset", "scale")


def sharded_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    batch_axes: Sequence[str],
    heads_axis: str | None = None,
    return_lse: bool = False,
    **options: Unpack[Arguments],
) -> Any:
    """`attention`, each device with its own rows, and heads where `heads_axis` divides both kinds.

    Args:
      query, key, value, return_lse, options: of `attention`; rows and heads are counted in the whole
        batch, which is what is given.
      batch_axes: of the mesh, which split the rows; their sizes together divide B.
      heads_axis: of the mesh, which splits the heads.

    Raises:
      ValueError: the mesh has no such axis; and what `attention` raises.
    """
    checked: dict[str, Any] = {name: of for name, of in options.items() if name in _CHECKED}
    jax.eval_shape(lambda: make_inputs(query, key, value, **checked))
    sizes = free_axes(*batch_axes, heads_axis)
    _check_rows(query.shape[0], batch_axes, sizes)
    # Heads that the axis does not divide stay together, on every device of it.
    ways = sizes.get(heads_axis or "", 1)
    split = ways > 1 and query.shape[2] % ways == key.shape[2] % ways == 0
    heads = heads_axis if split else None
    rows_of_device = query.shape[0] // math.prod(sizes.get(axis, 1) for axis in batch_axes)

    def of_device(of: Any) -> jax.ShapeDtypeStruct:
        shape = rows_of_device, of.shape[1], of.shape[2] // (ways if split else 1), of.shape[3]
        return jax.ShapeDtypeStruct(shape, of.dtype)

    implementation = options.get("implementation")
    implementation = implementation or choose_attention(*map(of_device, (query, key, value)))
    rest: dict[str, Any] = {**options, "return_lse": return_lse, "implementation": implementation}
    if not sizes or implementation in IN_XLA:
        return attention(query, key, value, **rest)
    if rest.get("dropout_seed") is not None:
        rest["dropout_seed"] = as_seed(rest["dropout_seed"], "dropout_seed")
    head_offset = rest.pop("head_offset", 0)
    given = {name: rest.pop(name, None) for name in (*_PER_ROW, *_WHOLE)}
    arrays = {name: jnp.asarray(of) for name, of in given.items() if of is not None}
    axes = _of(batch_axes, sizes)
    rows, whole, vectors = PartitionSpec(axes), PartitionSpec(), PartitionSpec(axes, None, heads)
    specs = {name: rows if name in _PER_ROW and of.ndim else whole for name, of in arrays.items()}

    def per_device(vectors: Any, arrays: Any) -> Any:
        first = jax.lax.axis_index(heads) * vectors[0].shape[2] if heads else 0
        query, key, value = vectors
        arrays = {"row_ids": _row_ids(query.shape[0], axes), **arrays}
        return attention(query, key, value, head_offset=head_offset + first, **arrays, **rest)

    return jax.shard_map(
        per_device,
        in_specs=((vectors,) * 3, specs),
        out_specs=(vectors, vectors) if return_lse else vectors,
        check_vma=False,  # the interpreter of kernels does not follow which axes a value varies over
    )((query, key, value), arrays)


def sharded_dropout_add_layer_norm(
    x: Any,
    residual: Any,
    scale: Any,
    bias: Any,
    *,
    batch_axes: Sequence[str],
    rate: float = 0.0,
    seed: Any = None,
    row_ids: Any = None,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> Float[Array, "B T D"]:
    """`dropout_add_layer_norm`, each device with its own rows.

    Devices along other axes all do the same: that is where Megatron-LM adds up what they have of x, and
    of its gradient. XLA, left to itself, would split positions, and gather weights and activations in turn.

    Raises:
      ValueError: the mesh has no such axis; and what `dropout_add_layer_norm` raises.
    """
    check_sublayer(x, residual, scale, bias)
    sizes = free_axes(*batch_axes)
    _check_rows(x.shape[0], batch_axes, sizes)
    options: dict[str, Any] = {"rate": rate, "eps": eps, "implementation": implementation}
    if not sizes and not free_axes(*jax.sharding.get_abstract_mesh().axis_names):
        return dropout_add_layer_norm(
            x, residual, scale, bias, seed=seed, row_ids=row_ids, **options
        )
    seed = None if seed is None else as_seed(seed)
    axes = _of(batch_axes, sizes)

    def per_device(x, residual, scale, bias, seed, row_ids):
        row_ids = _row_ids(x.shape[0], axes) if row_ids is None else row_ids
        return dropout_add_layer_norm(
            x, residual, scale, bias, seed=seed, row_ids=row_ids, **options
        )

    rows, whole = PartitionSpec(axes), PartitionSpec()
    interpreted = implementation == "pallas" and backends.device().platform == "cpu"
    return jax.shard_map(
        per_device,
        in_specs=(rows, rows, whole, whole, whole, rows),
        out_specs=rows,
        check_vma=not interpreted,  # as for attention
    )(x, residual, scale, bias, seed, row_ids)


def sharded_linear_cross_entropy(
    x: Any,
    embedding: Any,
    labels: Any,
    *,
    batch_axes: Sequence[str],
    positions_axis: str | None = None,
    bias: Any = None,
    label_smoothing: float = 0.0,
    weights: Any = None,
    chunk: int | None = None,
) -> CrossEntropySums:
    """`linear_cross_entropy` of all tokens of a batch, each device with its own.

    x [B, T, D], embedding [VOCAB, D], labels and weights [B, T], bias [VOCAB].

    Devices along `positions_axis`, which have the same rows, take a part of the positions each: that
    splits the work as evenly as parts of the vocabulary would, and needs no maximum or sum across devices
    in the middle of the softmax.

    Raises:
      ValueError: the mesh has no such axis; and what `linear_cross_entropy` raises.
    """
    check_floats({"x": x}, rank=3)
    check_integers("labels", labels, x.shape[:2])
    if weights is not None and jnp.shape(weights) != x.shape[:2]:
        raise ValueError(f"weights has shape {jnp.shape(weights)}; it must be {x.shape[:2]}")
    sizes = free_axes(*batch_axes, positions_axis)
    _check_rows(x.shape[0], batch_axes, sizes)
    ways = sizes.get(positions_axis or "", 1)
    own_axis = positions_axis if ways > 1 and labels.shape[1] % ways == 0 else None
    axes = (*_of(batch_axes, sizes), *([own_axis] if own_axis else []))

    def per_device(x, embedding, bias, labels, weights):
        sums = linear_cross_entropy(
            x.reshape(labels.size, x.shape[-1]),
            embedding,
            labels.reshape(labels.size),
            bias=bias,
            label_smoothing=label_smoothing,
            weights=None if weights is None else weights.reshape(labels.size),
            chunk=chunk,
        )
        return jax.lax.psum(sums, axes) if axes else sums

    arguments = x, embedding, bias, labels, weights
    if not sizes:
        return per_device(*arguments)
    tokens = PartitionSpec(_of(batch_axes, sizes), own_axis)
    whole = PartitionSpec()
    specs = tokens, whole, whole, tokens, tokens
    return jax.shard_map(per_device, in_specs=specs, out_specs=whole)(*arguments)


def free_axes(*names: str | None) -> dict[str, int]:
    """Those of these axes of the context's mesh that nobody has split anything over yet: their sizes.

    Raises:
      ValueError: the mesh has no such axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    axes = dict(
        zip(mesh.axis_names, zip(mesh.axis_sizes, mesh.axis_types, strict=True), strict=True)
    )
    missing = [name for name in names if name is not None and name not in axes]
    if missing:
        raise ValueError(f"the mesh has no axis {missing[0]!r}; it has {', '.join(axes)}")
    free = {name: axes[name] for name in names if name is not None}
    return {
        name: size for name, (size, kind) in free.items() if kind != AxisType.Manual and size > 1
    }


def _check_rows(rows: int, batch_axes: Sequence[str], sizes: dict[str, int]) -> None:
    ways = math.prod(sizes.get(axis, 1) for axis in batch_axes)
    if rows % ways:
        raise ValueError(f"{rows} rows cannot be split over the {ways} devices of {batch_axes}")


def _row_ids(rows: int, axes: tuple[str, ...]) -> Int[Array, "{rows}"]:
    """The numbers of a device's rows in the whole batch."""
    first = jax.lax.axis_index(axes) * rows if axes else 0
    return first + jnp.arange(rows, dtype=jnp.int32)


def _of(axes: Sequence[str], sizes: dict[str, int]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis in sizes)
