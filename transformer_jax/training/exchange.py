# SPDX-License-Identifier: Apache-2.0
"""What the devices that share a batch exchange: weights, the sum of gradients, and nothing else.

Each device has its own rows, and computes with whole weights on them. Where `fsdp` splits the weights,
a step gathers them once and adds up gradients to where their weights are kept (Rajbhandari et al. 2020,
ZeRO). A weight that is used three times, the embedding, is gathered and added up once, as any other.
XLA left to itself does neither: it multiplies by the parts of weights that are split, and adds up
activations. For the axis `tensor` that is right (Shoeybi et al. 2019, Megatron-LM), and left to XLA.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from transformer_jax.data.batch import Batch
from transformer_jax.model.on_mesh import BATCH_AXES, HEADS_AXIS

EVERYWHERE = PartitionSpec()


def on_each_part(
    function: Callable[..., Any], mesh: Mesh, specs: Any, out: Any
) -> Callable[..., Any]:
    """`function` of (parameters, batch, ...), called on each device with its parts of the two.

    The parameters, whose `specs` are those of sharding.py, are what a device keeps of them; what
    follows the batch is whole; `out` has the specs of what comes out. Where the mesh has an axis
    `tensor`, that is XLA's to split inside, too; where no axis splits a batch, everything is.
    """
    axes = {*BATCH_AXES, *(axis for axis, size in mesh.shape.items() if size == 1)}

    def split(params: Any, batch: Batch, *others: Any) -> Any:
        if all(mesh.shape[axis] == 1 for axis in BATCH_AXES):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # model/on_mesh.py reads it
                return function(params, batch, *others)
        return jax.shard_map(
            function,
            mesh=mesh,
            axis_names=axes,
            in_specs=(
                _only(BATCH_AXES, specs),
                PartitionSpec(BATCH_AXES),
                *(EVERYWHERE for _ in others),
            ),
            out_specs=_only(BATCH_AXES, out),
            check_vma=False,  # as in model/on_mesh.py
        )(params, batch, *others)

    return split


def gathered(params: Any, specs: Any) -> Any:
    """Whole parameters (but for what `tensor` splits), from the part that each device keeps."""

    def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        for dimension, axis in enumerate(spec):
            if axis in _axes():
                leaf = jax.lax.all_gather(leaf, axis, axis=dimension, tiled=True)
        return leaf

    return _also_by_heads(lambda params: jax.tree.map(gather, params, specs), specs)(params)


def added_up(grads: Any, specs: Any) -> Any:
    """The sum of the devices' gradients of whole parameters; each has the part that it keeps."""

    def add(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        for dimension, axis in enumerate(spec):
            if axis in _axes():
                leaf = jax.lax.psum_scatter(leaf, axis, scatter_dimension=dimension, tiled=True)
        others = tuple(axis for axis in _axes() if axis not in spec)
        return jax.lax.psum(leaf, others) if others else leaf

    return _also_by_heads(lambda grads: jax.tree.map(add, grads, specs), specs)(grads)


def sums_added_up(sums: Any) -> Any:
    """The sum of what each device summed over its rows."""
    return jax.lax.psum(sums, _axes()) if _axes() else sums


def _axes() -> tuple[str, ...]:
    """The batch axes that `on_each_part` has split here, those of one device not among them."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in BATCH_AXES if axis in mesh.manual_axes and mesh.shape[axis] > 1)


def _also_by_heads(function: Callable[[Any], Any], specs: Any) -> Callable[[Any], Any]:
    """`function` of a tree that has these specs, on each device along `tensor` by itself.

    XLA would put together what that axis splits, for every exchange along the others.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _axes() or HEADS_AXIS in mesh.manual_axes:
        return function
    parts = _only((HEADS_AXIS,), specs)
    return jax.shard_map(
        function, axis_names={HEADS_AXIS}, in_specs=(parts,), out_specs=parts, check_vma=False
    )


def _only(axes: tuple[str, ...], specs: Any) -> Any:
    """The same specs without other axes."""
    return jax.tree.map(
        lambda spec: PartitionSpec(*(axis if axis in axes else None for axis in spec)), specs
    )
