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
from transformer_jax.training.sharding import state_specs

EVERYWHERE = PartitionSpec()


def kept_parts(params: Any, mesh: Mesh) -> Any:
    """Which part of every parameter a device keeps, as far as the batch axes go: PartitionSpecs."""

    def of_batch_axes(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(axis if axis in BATCH_AXES else None for axis in spec))

    return jax.tree.map(of_batch_axes, state_specs(params, mesh))


def on_each_part(
    function: Callable[..., Any], mesh: Mesh, kept: Any, out: Any
) -> Callable[..., Any]:
    """`function` of (parameters, batch, ...), called on each device with its parts of the two.

    The parameters are what a device keeps of them; what follows the batch is whole, and `out` has the
    PartitionSpecs of what it returns. Where the mesh has a `tensor` axis, that is XLA's to split inside
    too; where it does not split a batch, everything is.
    """
    axes = {axis for axis in BATCH_AXES if mesh.shape[axis] > 1}

    def split(params: Any, batch: Batch, *others: Any) -> Any:
        if not axes:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # model/on_mesh.py reads it
                return function(params, batch, *others)
        return jax.shard_map(
            function,
            mesh=mesh,
            axis_names=axes if mesh.shape[HEADS_AXIS] > 1 else set(mesh.axis_names),
            in_specs=(kept, PartitionSpec(BATCH_AXES), *(EVERYWHERE for _ in others)),
            out_specs=out,
            check_vma=False,  # as in model/on_mesh.py
        )(params, batch, *others)

    return split


def gathered(params: Any, kept: Any) -> Any:
    """Whole parameters from the parts; its transpose adds up a gradient to the parts."""

    def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        for dimension, axis in enumerate(spec):
            if axis in _axes():
                leaf = jax.lax.all_gather(leaf, axis, axis=dimension, tiled=True)
        return leaf

    return jax.tree.map(gather, params, kept)


def added_up(tree: Any, kept: Any = EVERYWHERE) -> Any:
    """The sum over the devices that share a batch, except over the axes that `gathered` took care of."""

    def add(spec: PartitionSpec, part: Any) -> Any:
        axes = tuple(axis for axis in _axes() if axis not in spec)
        return jax.lax.psum(part, axes) if axes else part

    return jax.tree.map(add, kept, tree)


def _axes() -> tuple[str, ...]:
    """The batch axes that `on_each_part` has split here."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in BATCH_AXES if axis in manual)
