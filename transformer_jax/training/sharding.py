# SPDX-License-Identifier: Apache-2.0
"""The mesh of devices, and where every array of the training step lives on it.

Axes: `data` splits the batch; `fsdp` splits the batch too, and the parameters and the optimizer's
state; `tensor` splits heads, feed-forward and vocabulary. The paper's eight GPUs are `data=8`.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer_jax.config import MeshConfig
from transformer_jax.data.batching import Share
from transformer_jax.errors import UserError
from transformer_jax.model.on_mesh import BATCH_AXES

# From the end of a parameter's name to the mesh axes of its dimensions; the first match holds.
RULES = (
    (r"embedding/(table|position_table)$", ("tensor", "fsdp")),
    (r"(query|key|value|expand)/kernel$", ("fsdp", "tensor")),
    (r"(query|key|value|expand)/bias$", ("tensor",)),
    (r"(out|contract)/kernel$", ("tensor", "fsdp")),
    (r"", ()),  # layer norms and the other biases: everywhere
)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh of all devices; an axis of size -1 takes what the others leave.

    Raises:
      UserError: the axes' sizes do not multiply to the number of devices.
    """
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    devices = jax.device_count()
    known = math.prod(size for size in sizes.values() if size > 0)
    if devices % known or (-1 not in sizes.values() and known != devices):
        raise UserError(
            f"config.mesh.data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not "
            f"fit the {devices} device(s) here; the sizes must multiply to that number (-1: the rest); "
            "JAX_NUM_CPU_DEVICES says how many a CPU counts for"
        )
    shape = tuple(devices // known if size == -1 else size for size in sizes.values())
    return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def batch_ways(mesh: Mesh) -> int:
    """How many ways a batch's rows are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def share_of_process(mesh: Mesh) -> Share:
    """The rows of every batch that this process's devices hold, whatever the order of the devices."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    parts = (owners.reshape(batch_ways(mesh), -1) == jax.process_index()).any(axis=1)
    return Share(tuple(np.flatnonzero(parts).tolist()), batch_ways(mesh))


def spread(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has as a whole, as global arrays: each device gets its part."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        ),
        tree,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_specs(tree: Any, mesh: Mesh) -> Any:
    """The mesh axes of every array of a tree of parameters or of optimizer state.

    Adam's moments have their parameter's name at their end, and so its axes. A dimension that its
    axis does not divide stays whole.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next(axes for pattern, axes in RULES if re.search(pattern, name))
        fits = zip(axes, leaf.shape, strict=False)
        return PartitionSpec(
            *(axis if size % mesh.shape[axis] == 0 else None for axis, size in fits)
        )

    return jax.tree_util.tree_map_with_path(spec, tree)


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """The same, with the mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(tree, mesh))
