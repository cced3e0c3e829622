# SPDX-License-Identifier: Apache-2.0
"""Compile kernels and whole training steps for GPUs and TPUs, on a machine with none of them.

    make aot
    python -m experiments.ahead_of_time --devices=T4,L4,v3

Speed it cannot tell. What it tells: which implementation of attention and of the fused norm each device
gets by default, and whether its compiler takes it; registers and spills of every kernel on an H200; the
memory that a step of base and big needs on an H200 and on eight v5e chips. It fails where a compiler
refuses, a kernel spills more than SPILLS allows, or memory is short. Needs the extra `aot`.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attention_kernels
import jax
import jax.numpy as jnp
import ml_collections
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import base, big
from experiments.described_devices import DEVICES, LOWERED_ONLY, devices, make_mesh, set_up
from transformer_jax.config import resolve
from transformer_jax.dry_run import bytes_needed, compile_step

_DEVICES = flags.DEFINE_list("devices", list(DEVICES), "What to compile for; all: write the table.")

RESULTS = Path(__file__).parent / "results"
SPILLS = 128  # bytes a thread, stores and loads apart
TOKENS = 25_000  # of a batch, a side: section 5.1
DUMP = Path(tempfile.gettempdir()) / f"ahead_of_time.{os.getpid()}"  # has the GPU's assembly

# Length of queries and keys, heads, features of a head, dtype, causal, dropout.
Case = tuple[int, int, int, str, bool, float]
# What every device gets by default.
DEFAULT: list[Case] = [
    (length, 8, k, dtype, causal, rate)
    for length in (64, 1_024, 16_384)
    for k in (64, 80, 128)
    for dtype in ("bfloat16", "float32")
    for causal, rate in ((True, 0.1), (False, 0.0))
    if k == 64 or causal
]
DEFAULT_LAYER_NORM = [
    (size, dtype) for size in (512, 768, 1024) for dtype in ("bfloat16", "float32")
]
# What is compiled for an H200 and for v5e by name, for its registers and its memory.
ATTENTION: list[Case] = [
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


def compile_on_one(name: str, function: Any, *shapes: tuple[tuple[int, ...], str]) -> Any:
    """A function compiled for one device, its arguments given by shape and dtype."""
    mesh = make_mesh(devices(name)[:1])
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=everywhere)
        for shape, dtype in shapes
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function).lower(*arguments)
        return lowered if name in LOWERED_ONLY else lowered.compile()


def attention(name: str, implementation: str | None, case: Case) -> Any:
    """Forward and backward of attention on a batch of the paper's size."""
    length, heads, k, dtype, causal, rate = case

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
        name, gradients, *[vectors] * 3, *[segments] * 2, ((), "uint32"), ((rows,), "int32")
    )


def layer_norm(name: str, implementation: str | None, features: int, dtype: str) -> Any:
    """Forward and backward of the fused end of a sublayer."""

    def gradients(x, residual, scale, bias, seed, rows):
        def total(*arrays):
            out = attention_kernels.dropout_add_layer_norm(
                *arrays, rate=0.1, seed=seed, row_ids=rows, implementation=implementation
            )
            return out.astype(jnp.float32).sum(), out

        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(x, residual, scale, bias)

    rows = TOKENS // 64
    block, vector = ((rows, 64, features), dtype), ((features,), "float32")
    return compile_on_one(
        name, gradients, block, block, vector, vector, ((), "uint32"), ((rows,), "int32")
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


def chosen(name: str, choose: Callable[..., str], *arguments: Any) -> str:
    """Which implementation a device gets by default."""
    with jax.sharding.use_abstract_mesh(make_mesh(devices(name)[:1]).abstract_mesh):
        return choose(*arguments)


def measure(device: str, what: str, build: Callable[[], Any], **known: str) -> dict[str, Any]:
    """Compile, and note what came of it beside what is known already."""
    shutil.rmtree(DUMP, ignore_errors=True)
    DUMP.mkdir()
    start = time.perf_counter()
    row: dict[str, Any] = {"device": device, "what": what, **known, "kernels": []}
    try:
        built = build()
    except Exception as error:  # a compiler's refusal is a result
        row["failure"] = " ".join(str(error).split())[:300]
    else:
        row["seconds"] = time.perf_counter() - start
        if device not in LOWERED_ONLY:
            weigh(row, built.memory_analysis())
    print(line(row), flush=True)
    return row


def weigh(row: dict[str, Any], memory: Any) -> None:
    """Note the memory, on an H200 the registers, too; and whether they are more than there are."""
    needed, holds = bytes_needed(memory), DEVICES[row["device"]].memory
    row |= {"gigabytes": needed / 1e9, "temporary_gigabytes": memory.temp_size_in_bytes / 1e9}
    if row["device"] == "H200":
        row["kernels"] = ptxas_report()
    spilled = max((max(of["stores"], of["loads"]) for of in row["kernels"]), default=0)
    if spilled > SPILLS:
        row["failure"] = f"{spilled} bytes of spills, more than {SPILLS}"
    if needed > holds:
        row["failure"] = f"{needed / 1e9:.1f} GB do not fit {holds / 1e9:.0f} GB"


def by_default(name: str) -> list[dict[str, Any]]:
    """What a device gets where nobody asks for an implementation."""
    rows = []
    for case in DEFAULT:
        length, heads, k, dtype, *_ = case
        vectors = jax.ShapeDtypeStruct((1, length, heads, k), dtype)
        choice = chosen(name, attention_kernels.choose_attention, *[vectors] * 3)
        build = functools.partial(attention, name, None, case)
        rows.append(measure(name, describe(case), build, chosen=choice))
    for features, dtype in DEFAULT_LAYER_NORM:
        block = jax.ShapeDtypeStruct((1, 64, features), dtype)
        choice = chosen(name, attention_kernels.choose_layer_norm, block, 0.1)
        build = functools.partial(layer_norm, name, None, features, dtype)
        rows.append(measure(name, f"norm {features} {dtype}", build, chosen=choice))
    return rows


def in_detail(name: str) -> list[dict[str, Any]]:
    """Kernels by name and whole steps."""
    rows = []
    for implementation in ("pallas", "mosaic_gpu") if name == "H200" else ("pallas",):
        for case in ATTENTION:
            if implementation == "pallas" or case[3] != "float32":
                what = f"{implementation} {describe(case)}"
                build = functools.partial(attention, name, implementation, case)
                rows.append(measure(name, what, build))
    for features, dtype in LAYER_NORM:
        build = functools.partial(layer_norm, name, "pallas", features, dtype)
        rows.append(measure(name, f"layer norm {features} {dtype}", build))
    mesh = make_mesh(devices(name))
    for model, config in (("base", base.get_config()), ("big", big.get_config())):
        for chunk in (0, 2_048):
            config.train.logits_chunk = chunk
            what = f"step of {model}, {mesh.size} device(s), logits_chunk {chunk}"
            build = functools.partial(train_step, config, mesh)
            rows.append(measure(name, what, build))
    return rows


def describe(case: Case) -> str:
    """Such as "1024 x 8 x 64 bfloat16 causal dropout 0.1"."""
    length, heads, k, dtype, causal, rate = case
    return (
        f"{length} x {heads} x {k} {dtype}" + " causal" * causal + f" dropout {rate}" * bool(rate)
    )


def line(row: dict[str, Any]) -> str:
    """A row of the detailed table."""
    kernels = "; ".join(
        f"{of['kernel']} {of['registers']} ({of['stores']}/{of['loads']})" for of in row["kernels"]
    )
    memory = (
        f"{row['gigabytes']:.2f} | {row['temporary_gigabytes']:.2f}" if "gigabytes" in row else "|"
    )
    what = row["what"] + (f": {row['chosen']}" if "chosen" in row else "")
    return f"| {row['device']} | {what} | {memory} | {kernels} | {row.get('failure', '')} |"


def table_of_defaults(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Cases down, devices across, in each cell what is chosen there."""
    names = list(dict.fromkeys(row["device"] for row in rows))
    cells = {
        (row["what"], row["device"]): f"**{row['chosen']} fails**"
        if "failure" in row
        else row["chosen"]
        for row in rows
    }
    return [
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(
            f"| {what} | {' | '.join(cells[what, name] for name in names)} |"
            for what in dict.fromkeys(row["what"] for row in rows)
        ),
        "",
        *(f"- {of['device']}, {of['what']}: {of['failure']}" for of in rows if "failure" in of),
    ]


def write(defaults: list[dict[str, Any]], details: list[dict[str, Any]]) -> None:
    """The tables, beside the figures that they were made of."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    figures = {"date": today, "versions": versions, "defaults": defaults, "rows": details}
    compact = json.dumps(figures).replace('{"device"', '\n  {"device"')  # a row a line
    (RESULTS / "ahead_of_time.json").write_text(compact + "\n")
    text = [
        "# Compiled ahead of time",
        "",
        f"`make aot`, {today}, " + ", ".join(f"{name} {of}" for name, of in versions.items()) + ". "
        "Nothing here was run. Attention is forward and backward, lengths x heads x features.",
        "",
        "## By default",
        "",
        "Which implementation a device gets, compiled without complaint unless it says otherwise"
        f" ({', '.join(sorted(LOWERED_ONLY))}: only lowered, CUDA 13 has no compiler for it).",
        "",
        *table_of_defaults(defaults),
        "",
        "## Kernels and steps",
        "",
        "Memory is a device's; a kernel's figures are registers of a thread (spill stores / loads in "
        "bytes).",
        "",
        "| device | what | memory, GB | of it temporary | kernels | failure |",
        "|---|---|---|---|---|---|",
        *map(line, details),
    ]
    (RESULTS / "ahead_of_time.md").write_text("\n".join(text) + "\n")


def main(_: Any) -> None:
    """Compile everything for the devices, write the tables, exit with 1 if anything failed."""
    names = _DEVICES.value
    unknown = set(names) - set(DEVICES)
    if unknown:
        raise app.UsageError(f"--devices: {', '.join(unknown)}; known are {', '.join(DEVICES)}")
    os.environ |= {
        "XLA_FLAGS": f"--xla_dump_to={DUMP} --xla_gpu_autotune_level=0",
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_TO": str(DUMP),
    }
    set_up()
    defaults = [row for name in names for row in by_default(name)]
    details = [row for name in names if name in ("H200", "v5e") for row in in_detail(name)]
    shutil.rmtree(DUMP, ignore_errors=True)
    if set(names) == set(DEVICES):
        write(defaults, details)
    else:
        print("", *table_of_defaults(defaults), sep="\n")
    sys.exit(any("failure" in row for row in (*defaults, *details)))


if __name__ == "__main__":
    app.run(main)
