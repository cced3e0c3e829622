# SPDX-License-Identifier: Apache-2.0
"""Which device a computation is traced for, and how a Pallas kernel is called there."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import lax
from jax.experimental import pallas as pl

T = TypeVar("T")

# NVIDIA's compute capability of devices that are not here, as the last word of their name that is known.
_CAPABILITIES = {
    "V100": (7, 0),
    "T4": (7, 5),
    **dict.fromkeys(("A100", "A30", "A800"), (8, 0)),
    **dict.fromkeys(("A10", "A10G", "A40", "A6000", "3090"), (8, 6)),
    **dict.fromkeys(("L4", "L40", "L40S", "4090"), (8, 9)),
    **dict.fromkeys(("H100", "H200", "H800", "H20", "GH200"), (9, 0)),
    **dict.fromkeys(("B100", "B200", "GB200"), (10, 0)),
    **dict.fromkeys(("B300", "GB300"), (10, 3)),
    "5090": (12, 0),
}
# Bytes of shared memory that a block may have, by compute capability (CUDA's programming guide).
_SHARED_MEMORY = {
    (7, 0): 96,
    (7, 5): 64,
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (12, 0): 99,
    (12, 1): 99,
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What a kernel's plan depends on."""

    platform: str  # "cpu", "gpu", "tpu", or another
    kind: str  # what the maker calls it, such as "NVIDIA H200" or "TPU v5 lite"
    capability: tuple[int, int] | None = None  # of a GPU: NVIDIA's compute capability, if known
    vmem: int | None = None  # bytes of a TPU core's vector memory, if known
    shared_memory: int = 0  # bytes that a block of a GPU may have, if known


def device() -> Device:
    """The device that is being compiled for: of the mesh in use, or else JAX's default.

    The mesh may be of devices that are not here: that is how kernels are compiled ahead of time.
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is None:
        return _describe(_default_device())
    for own in jax.local_devices():
        if own.device_kind == abstract.device_kind:
            return _describe(own)
    return _describe(abstract)


def _default_device() -> Any:
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return jax.local_devices()[0] if chosen is None else chosen


def _describe(of: Any) -> Device:
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(of.platform, of.platform)
    if platform == "tpu":
        return Device(platform, of.device_kind, vmem=_vmem())
    if platform == "gpu":
        capability = _capability(of)
        kibibytes = _SHARED_MEMORY.get(capability or (0, 0), 0)
        memory = getattr(of, "shared_memory_per_block_optin", 1024 * kibibytes)
        return Device(platform, of.device_kind, capability, shared_memory=memory)
    return Device(platform, of.device_kind)


def _capability(of: Any) -> tuple[int, int] | None:
    major, _, minor = str(getattr(of, "compute_capability", "")).partition(".")
    if major.isdecimal() and minor.isdecimal():
        return int(major), int(minor)
    words = of.device_kind.replace("-", " ").split()
    return next((_CAPABILITIES[word] for word in words if word in _CAPABILITIES), None)


def _vmem() -> int | None:
    # Imported here: a jax for one kind of device need not have the other's modules.
    from jax.experimental.pallas import tpu

    try:  # of the mesh in use, or of the default device
        return tpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # a kind that this version of JAX does not know
        return None


SHARDED = "arrays that are sharded in explicit mode; the sharded functions of this package, or jax.shard_map, can"


def unsupported(of: Device, *arrays: Any) -> str | None:
    """Why no kernel of `pallas_call` can serve this device and arrays, or None if they can."""
    if is_sharded(*arrays):
        return SHARDED
    if not all(isinstance(size, int) for array in arrays for size in array.shape):
        return "shapes that are not known when compiling, as in jax.export"
    if of.platform not in ("cpu", "gpu", "tpu"):
        return f"a device of the platform {of.platform}"
    if of.platform == "gpu":
        if of.capability is None:
            return f"a GPU of kind {of.kind}, whose compute capability is not known"
        if of.capability < (8, 0):
            return "a GPU of compute capability {}.{}: Triton needs 8.0".format(*of.capability)
    if of.platform == "tpu" and of.vmem is None:
        return f"a TPU of kind {of.kind}, whose vector memory is not known"
    return None


@functools.cache
def log_once(message: str) -> None:
    """A warning, the first time that there is cause for it."""
    logging.getLogger("attention_kernels").warning(message)


def on_platform(
    planned: Device, kernel: Callable[..., T], in_xla: Callable[..., T], *arrays: Any
) -> T:
    """`kernel` where the code is lowered for the platform that it was planned for, else `in_xla`.

    Where a computation will run is known only when it is lowered: on a host with a GPU it may be a CPU.
    The derivative of either is XLA's, so that second derivatives, of a backward kernel, are there.
    """
    name = {"gpu": "cuda"}.get(planned.platform, planned.platform)

    @jax.custom_jvp
    def function(*arrays: Any) -> T:
        if planned.platform == "cpu":  # interpreted, anywhere
            return kernel(*arrays)
        return lax.platform_dependent(*arrays, default=in_xla, **{name: kernel})

    @function.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(in_xla, primals, tangents)

    return function(*arrays)


def is_sharded(*arrays: Any) -> bool:
    """Whether an array's type says how it is spread over a mesh, as in JAX's explicit mode."""
    return any(
        part is not None
        for array in arrays
        for part in getattr(getattr(jax.typeof(array), "sharding", None), "spec", ())
    )


def vary_together(arrays: T) -> T:
    """Under `jax.shard_map`, all as varying over every mesh axis that one of them varies over.

    A gradient must vary as its primal does. Here, outside of a custom derivative, JAX sees to that: it
    sums up the gradient of what was the same on all devices.
    """
    leaves = jax.tree.leaves(arrays)
    axes = frozenset().union(*map(varying_axes, leaves))

    def vary(array: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying_axes(array)))
        return lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(vary, arrays)


def varying_axes(array: jax.Array) -> frozenset[str]:
    """The axes of the mesh over which an array differs from device to device, under `jax.shard_map`."""
    return jax.typeof(array).manual_axis_type.varying


def power_of_two(number: int) -> int:
    """The smallest that is not less than a positive number: what Triton wants of its arrays."""
    return 1 << (number - 1).bit_length()


def pallas_call(
    kernel: Callable[..., None],
    arrays: Sequence[jax.Array],
    *,
    device: Device,
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
      device: what to compile for.
      grid: how many programs there are along each axis; all are independent.
      in_specs: which block of each input a program has.
      outputs: block, shape and dtype of each output.
      flops, transcendentals: of all programs; XLA takes a kernel without an estimate to be free.
      warps: of a program on a GPU.
    """
    specs, shapes, dtypes = zip(*outputs, strict=True)
    # Under `jax.shard_map` an output varies over every mesh axis that an input varies over.
    varying = frozenset().union(*map(varying_axes, arrays))
    if varying and device.platform == "cpu":
        raise NotImplementedError(
            "a kernel that is interpreted on a CPU cannot run in jax.shard_map with check_vma=True: JAX's "
            "interpreter does not follow which axes a value varies over; use implementation='xla', or "
            "check_vma=False"
        )
    kind = jax.sharding.ManualAxisType(varying=varying)
    out_shape = [
        jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    moved = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    moved += sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in out_shape)
    call = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=list(specs),
        out_shape=out_shape,
        interpret=interpretation(device),
        compiler_params=_compiler_params(device, len(grid), warps),
        cost_estimate=pl.CostEstimate(
            flops=flops, transcendentals=transcendentals, bytes_accessed=moved
        ),
        name=_name(kernel),
    )
    # A TPU has no words of 64 bits for a kernel's indices and constants.
    with jax.enable_x64(False):
        return call(*arrays)


def interpretation(device: Device) -> Any:
    """How `pl.pallas_call` interprets a kernel, or False where it is compiled."""
    return device.platform == "cpu"


def _compiler_params(device: Device, axes: int, warps: int) -> Any:
    # Imported here: a jax for one kind of device need not have the other's modules.
    if device.platform == "gpu":
        from jax.experimental.pallas import triton

        return triton.CompilerParams(num_warps=warps, num_stages=2)
    if device.platform == "tpu":
        from jax.experimental.pallas import tpu

        return tpu.CompilerParams(
            dimension_semantics=[tpu.PARALLEL] * axes, vmem_limit_bytes=vmem_limit(device)
        )
    return None


def vmem_limit(device: Device) -> int:
    """Bytes of vector memory that a kernel may use; the compiler keeps a few itself."""
    return (device.vmem or 0) * 15 // 16


def _name(kernel: Any) -> str:
    function = kernel.func if isinstance(kernel, functools.partial) else kernel
    return function.__name__
