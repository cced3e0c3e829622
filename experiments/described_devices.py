# SPDX-License-Identifier: Apache-2.0
"""GPUs and TPUs that need not be here, described well enough for their compilers."""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a compiler asks of a GPU: NVIDIA's data sheets and its CUDA programming guide."""

    kind: str  # what the driver calls it
    capability: tuple[int, int]  # NVIDIA's compute capability
    multiprocessors: int
    fpus: int  # of a multiprocessor, float32
    ghz: float  # at boost
    threads: int  # of a multiprocessor
    shared: int  # KiB of shared memory that a block may have, at most
    shared_of_all: int  # KiB of a multiprocessor's blocks together
    cache: int  # MiB, second level
    bandwidth: float  # bytes a second
    memory: float  # bytes


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A topology that libtpu knows."""

    topology: str  # generation:chips
    memory: float  # bytes a device: of a chip's two cores, where they are two devices
    chip: str = "default"  # "megacore": two cores are one device


DEVICES: dict[str, Gpu | Tpu] = {
    "T4": Gpu("Tesla T4", (7, 5), 40, 64, 1.59, 1024, 64, 64, 4, 320e9, 16e9),
    "V100": Gpu("Tesla V100-SXM2-16GB", (7, 0), 80, 64, 1.53, 2048, 96, 96, 6, 900e9, 16e9),
    "L4": Gpu("NVIDIA L4", (8, 9), 58, 128, 2.04, 1536, 99, 100, 48, 300e9, 24e9),
    "RTX4090": Gpu(
        "NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 2.52, 1536, 99, 100, 72, 1008e9, 24e9
    ),
    "RTX5090": Gpu(
        "NVIDIA GeForce RTX 5090", (12, 0), 170, 128, 2.41, 1536, 99, 100, 96, 1792e9, 32e9
    ),
    "A100": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 1.41, 2048, 163, 164, 40, 1555e9, 40e9),
    "H100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 2048, 227, 228, 50, 3350e9, 80e9),
    "H200": Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 2048, 227, 228, 50, 4800e9, 141e9),
    "B200": Gpu("NVIDIA B200", (10, 0), 148, 128, 1.97, 2048, 227, 228, 126, 8000e9, 180e9),
    "v3": Tpu("v3:2x2", 16e9),
    "v4": Tpu("v4:2x2x1", 32e9, "megacore"),
    "v5e": Tpu("v5e:2x4", 16e9),
    "v5p": Tpu("v5p:2x2x1", 95e9),
    "v6e": Tpu("v6e:2x4", 32e9),
    "7x": Tpu("tpu7x:2x2x1", 96e9),
}
# CUDA 13 compiles for compute capability 7.5 and later, so for this one a computation is only lowered.
LOWERED_ONLY = {"V100"}

_TARGET = """
gpu_device_info {{
  core_count: {gpu.multiprocessors}  clock_rate_ghz: {gpu.ghz}  fpus_per_core: {gpu.fpus}
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: {gpu.threads}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: {shared}
  shared_memory_per_core: {shared_of_all}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  l2_cache_size: {cache}  memory_bandwidth: {gpu.bandwidth:.0f}  device_memory_size: {gpu.memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.kind}"
"""


def set_up() -> None:
    """Ask for no device and for no cloud's metadata; call it before JAX starts a backend."""
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # processes that compile hold no TPU
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any: the topology says what is compiled for
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


@functools.cache
def devices(name: str) -> list[Any]:
    """All devices of a topology; one GPU."""
    described = DEVICES[name]
    if isinstance(described, Tpu):
        return topologies.get_topology_desc(
            described.topology, platform="tpu", chip_config_name=described.chip
        ).devices
    major, minor = described.capability
    target = _TARGET.format(
        gpu=described,
        shared=described.shared * 2**10,
        shared_of_all=described.shared_of_all * 2**10,
        cache=described.cache * 2**20,
        major=major,
        minor=minor,
    )
    return topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=target
    ).devices


def make_mesh(of: list[Any]) -> Mesh:
    """All of them, along the axis `data`."""
    axes = "data", "fsdp", "tensor"
    return Mesh(np.array(of).reshape(-1, 1, 1), axes, axis_types=(AxisType.Auto,) * 3)
