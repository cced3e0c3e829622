# SPDX-License-Identifier: Apache-2.0
"""Compile kernels and whole training steps for an H200 and for eight v5e chips, on a machine with neither.

    make aot

Speed it cannot tell. What it tells: whether the compilers take the kernels at all; the registers and
the spills of every kernel on the GPU; how much memory a step of base and big needs. It fails where a
kernel spills more than SPILLS allows, or a step does not fit its device. Needs the extra `aot`.
"""

import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attention_kernels
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs import base, big
from transformer_jax.config import resolve
from transformer_jax.dry_run import bytes_needed, compile_step

RESULTS = Path(__file__).parent / "results"
SPILLS = {"bfloat16": 128, "float32": 640}  # bytes a thread, stores and loads apart
MEMORY = {"H200": 141e9, "v5e": 16e9}  # bytes a device
TOKENS = 25_000  # of a batch, a side: section 5.1
DUMP = Path(tempfile.gettempdir()) / f"ahead_of_time.{os.getpid()}"  # has the GPU's assembly

# What the compiler wants to know of the GPU that it has not got.
_H200 = """
gpu_device_info {
  core_count: 132  clock_rate_ghz: 1.98  fpus_per_core: 128
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  l2_cache_size: 52428800  memory_bandwidth: 4800000000000  device_memory_size: 150754820096
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""

# Length of queries and keys, heads, features of a head, dtype, causal, dropout.
ATTENTION = [
    *((length, 8, 64, "bfloat16", True, 0.1) for length in (32, 64, 128, 256)),
    (100, 16, 64, "bfloat16", False, 0.1),
    (256, 8, 64, "bfloat16", False, 0.0),
    *((length, 8, 128, "bfloat16", False, 0.1) for length in (128, 256)),
    *((length, 8, 64, "bfloat16", True, 0.1) for length in (2_048, 8_192, 16_384)),
    (16_384, 8, 128, "bfloat16", True, 0.1),
    *((length, 8, 64, "float32", False, 0.1) for length in (64, 256)),
    (64, 8, 128, "float32", False, 0.1),
]
LAYER_NORM = [(512, "bfloat16"), (1024, "bfloat16"), (512, "float32")]


def devices() -> dict[str, list[Any]]:
    """The devices to compile for; call it before JAX starts a backend, which reads these settings."""
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {
        "XLA_FLAGS": f"--xla_dump_to={DUMP} --xla_gpu_autotune_level=0",
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_TO": str(DUMP),
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    return {
        "H200": topologies.get_topology_desc(
            platform="cuda", topology="1x1x1", target_config=_H200
        ).devices,
        "v5e": topologies.get_topology_desc("v5e:2x4", platform="tpu").devices,
    }


def make_mesh(of: list[Any]) -> Mesh:
    """All of them, along the axis `data`."""
    axes = "data", "fsdp", "tensor"
    return Mesh(np.array(of).reshape(-1, 1, 1), axes, axis_types=(AxisType.Auto,) * 3)


def compile_on_one(device: Any, function: Any, *shapes: tuple[tuple[int, ...], str]) -> Any:
    """A function compiled for one device, its arguments given by shape and dtype."""
    mesh = make_mesh([device])
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=everywhere)
        for shape, dtype in shapes
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(*arguments).compile()


def attention(
    device: Any,
    implementation: str,
    length: int,
    heads: int,
    k: int,
    dtype: str,
    causal: bool,
    rate: float,
):
    """Forward and backward of an attention kernel on a batch of the paper's size."""

    def gradients(query, key, value, query_segments, key_segments, seed, rows):
        def total(query, key, value):
            out = attention_kernels.attention(
                query,
                key,
                value,
                query_segments=query_segments,
                key_segments=key_segments,
                causal=causal,
                dropout_rate=rate,
                dropout_seed=seed,
                row_ids=rows,
                implementation=implementation,
            )
            return out.astype(jnp.float32).sum(), out

        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    rows = max(1, TOKENS // length)
    vectors, segments = ((rows, length, heads, k), dtype), ((rows, length), "int32")
    return compile_on_one(
        device, gradients, *[vectors] * 3, *[segments] * 2, ((), "uint32"), ((rows,), "int32")
    )


def layer_norm(device: Any, features: int, dtype: str):
    """Forward and backward of the fused end of a sublayer."""

    def gradients(x, residual, scale, bias, seed, rows):
        def total(*arrays):
            out = attention_kernels.dropout_add_layer_norm(
                *arrays, rate=0.1, seed=seed, row_ids=rows, implementation="pallas"
            )
            return out.astype(jnp.float32).sum(), out

        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(x, residual, scale, bias)

    rows = TOKENS // 64
    block, vector = ((rows, 64, features), dtype), ((features,), "float32")
    return compile_on_one(
        device, gradients, block, block, vector, vector, ((), "uint32"), ((rows,), "int32")
    )


def train_step(config: ml_collections.ConfigDict, mesh: Mesh):
    """A whole step of a run on the mesh, at the paper's batch size, in rows of 64 positions."""
    config.model.dtype = "bfloat16"
    run = resolve(config)
    rows = -(-TOKENS // 64 // mesh.size) * mesh.size
    return compile_step(run, mesh, rows, 64)


def ptxas_report() -> list[dict[str, Any]]:
    """Registers and spills of our kernels in the last dump; of a kernel's several uses the worst."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(DUMP.glob("*.ptx")):
        if not re.search(r"\.entry (attention|layer_norm)_", path.read_text()):
            continue
        command = [_ptxas(), "-v", "-arch=sm_90a", str(path), "-o", os.devnull]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        for entry in re.finditer(
            r"entry function '(?P<kernel>\w+)'.*?"
            r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
            r"Used (?P<registers>\d+) registers",
            report,
            re.DOTALL,
        ):
            kernel = re.sub(r"(_mosaic_gpu_kernel|_+\d*)$", "", entry["kernel"])
            numbers = {name: int(entry[name]) for name in ("registers", "stores", "loads")}
            before = found.get(kernel, numbers)
            worst = {name: max(number, before[name]) for name, number in numbers.items()}
            found[kernel] = {"kernel": kernel, **worst}
    return sorted(found.values(), key=lambda of: of["kernel"])


@functools.cache
def _ptxas() -> str:
    package = importlib.util.find_spec("nvidia")
    assert package and package.submodule_search_locations
    for folder in package.submodule_search_locations:
        for path in Path(folder).glob("**/bin/ptxas"):
            return str(path)
    raise FileNotFoundError("ptxas: pip install -e '.[aot]'")


def measure(device: str, what: str, dtype: str, build: Any) -> dict[str, Any]:
    """Compile, and note what came of it."""
    shutil.rmtree(DUMP, ignore_errors=True)
    DUMP.mkdir()
    start = time.perf_counter()
    row: dict[str, Any] = {"device": device, "what": what}
    try:
        memory = build().memory_analysis()
    except Exception as error:  # a compiler's refusal is a result
        row |= {"kernels": [], "failure": " ".join(str(error).split())[:200]}
    else:
        needed = bytes_needed(memory)
        kernels = ptxas_report() if device == "H200" else []
        row |= {
            "seconds": time.perf_counter() - start,
            "gigabytes": needed / 1e9,
            "temporary_gigabytes": memory.temp_size_in_bytes / 1e9,
            "kernels": kernels,
        }
        spilled = max((max(of["stores"], of["loads"]) for of in kernels), default=0)
        if spilled > SPILLS[dtype]:
            row["failure"] = f"{spilled} bytes of spills, more than {SPILLS[dtype]}"
        if needed > MEMORY[device]:
            row["failure"] = f"{needed / 1e9:.1f} GB do not fit {MEMORY[device] / 1e9:.0f} GB"
    print(line(row), flush=True)
    return row


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    kernels = "; ".join(
        f"{of['kernel']} {of['registers']} ({of['stores']}/{of['loads']})" for of in row["kernels"]
    )
    memory = (
        f"{row['gigabytes']:.2f} | {row['temporary_gigabytes']:.2f}" if "gigabytes" in row else "|"
    )
    return f"| {row['device']} | {row['what']} | {memory} | {kernels} | {row.get('failure', '')} |"


def main(_: Any) -> None:
    """Compile everything for everything, write the table, exit with 1 if anything failed."""
    rows = []
    for device, of in devices().items():
        cases = [("pallas", *case) for case in ATTENTION]
        if device == "H200":
            cases += [("mosaic_gpu", *case) for case in ATTENTION if case[3] != "float32"]
        for case in cases:
            implementation, length, heads, k, dtype, causal, rate = case
            what = f"{implementation} {length} x {heads} x {k} {dtype}" + " causal" * causal
            what += f" dropout {rate}" if rate else ""
            build = functools.partial(attention, of[0], *case)
            rows.append(measure(device, what, dtype, build))
        for features, dtype in LAYER_NORM:
            build = functools.partial(layer_norm, of[0], features, dtype)
            rows.append(measure(device, f"layer norm {features} {dtype}", dtype, build))
        for name, config in (("base", base.get_config()), ("big", big.get_config())):
            for chunk in (0, 2_048):
                config.train.logits_chunk = chunk
                build = functools.partial(train_step, config, make_mesh(of))
                what = f"step of {name}, {len(of)} device(s), logits_chunk {chunk}"
                rows.append(measure(device, what, "bfloat16", build))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ahead_of_time.json").write_text(
        json.dumps({"date": today, "versions": versions, "rows": rows}, indent=2) + "\n"
    )
    heading = [
        "# Compiled ahead of time",
        "",
        f"`make aot`, {today}, " + ", ".join(f"{name} {of}" for name, of in versions.items()) + ". "
        "Nothing here was run. Memory is a device's; a kernel's figures are registers of a thread "
        "(spill stores / loads in bytes); pallas and mosaic_gpu are attention forward and backward, "
        "lengths x heads x features.",
        "",
        "| device | what | memory, GB | of it temporary | kernels | failure |",
        "|---|---|---|---|---|---|",
    ]
    (RESULTS / "ahead_of_time.md").write_text("\n".join([*heading, *map(line, rows)]) + "\n")
    shutil.rmtree(DUMP, ignore_errors=True)
    sys.exit(any("failure" in row for row in rows))


if __name__ == "__main__":
    app.run(main)
