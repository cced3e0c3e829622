# SPDX-License-Identifier: Apache-2.0
"""Which device a computation is traced for, and how a Pallas kernel is called there."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl

_VMEM = 96 * 2**20  # bytes of a TPU core's vector memory that a kernel may use, of 128 MiB


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh in use, or else of JAX's default backend.

    The mesh may be of devices that are not here: that is how kernels are compiled ahead of time.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def power_of_two(number: int) -> int:
    """The smallest that is not less than a positive number: what Triton wants of its arrays."""
    return 1 << (number - 1).bit_length()


def device_kind() -> str:
    """What the maker calls the device that a computation is traced for, such as "NVIDIA H200"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def pallas_call(
    kernel: Callable[..., None],
    arrays: Sequence[jax.Array],
    *,
    grid: tuple[int, ...],
    in_specs: Sequence[pl.BlockSpec],
    outputs: Sequence[tuple[pl.BlockSpec, tuple[int, ...], Any]],
    flops: int,
    transcendentals: int = 0,
    warps: int = 4,
) -> Sequence[jax.Array]:
    """Run a kernel for TPUs, and through Triton for GPUs; on a CPU it is interpreted.

    Args:
      kernel: gets a reference for every array, then one for every output.
      arrays: the inputs.
      grid: how many programs there are along each axis; all are independent.
      in_specs: which block of each input a program has.
      outputs: block, shape and dtype of each output.
      flops, transcendentals: of all programs; XLA takes a kernel without an estimate to be free.
      warps: of a program on a GPU.
    """
    specs, shapes, dtypes = zip(*outputs, strict=True)
    # Under `jax.shard_map` an output varies over every mesh axis that an input varies over.
    varying = frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))
    kind = jax.sharding.ManualAxisType(varying=varying)
    out_shape = [
        jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    moved = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    moved += sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in out_shape)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=list(specs),
        out_shape=out_shape,
        interpret=interpretation(),
        compiler_params=_compiler_params(len(grid), warps),
        cost_estimate=pl.CostEstimate(
            flops=flops, transcendentals=transcendentals, bytes_accessed=moved
        ),
        name=_name(kernel),
    )(*arrays)


def interpretation() -> Any:
    """How `pl.pallas_call` interprets a kernel, or False where it is compiled."""
    return platform() == "cpu"


def _compiler_params(axes: int, warps: int) -> Any:
    # Imported here: a jax for one kind of device need not have the other's modules.
    if platform() == "gpu":
        from jax.experimental.pallas import triton

        return triton.CompilerParams(num_warps=warps, num_stages=2)
    if platform() == "tpu":
        from jax.experimental.pallas import tpu

        return tpu.CompilerParams(dimension_semantics=[tpu.PARALLEL] * axes, vmem_limit_bytes=_VMEM)
    return None


def _name(kernel: Any) -> str:
    function = kernel.func if isinstance(kernel, functools.partial) else kernel
    return function.__name__
