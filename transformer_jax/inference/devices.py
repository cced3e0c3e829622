# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch shared by the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def by_rows(function: Callable[[Any, Any], Any], mesh: Mesh | None, shared: Any, rows: Any) -> Any:
    """function(shared, rows), where every device computes its own rows and stops when they are done.

    Args:
      function: its results have one row for each row of its second argument.
      mesh: None for the device that has the arrays.
      shared: a pytree that all devices have.
      rows: a pytree of arrays [B, ...]; B is a multiple of the devices.
    """
    if mesh is None or mesh.size == 1:
        return function(shared, rows)
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    on_each_device = jax.shard_map(
        function, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False
    )
    return jax.lax.with_sharding_constraint(
        on_each_device(shared, rows), jax.NamedSharding(mesh, whole)
    )
