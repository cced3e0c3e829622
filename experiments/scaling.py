# SPDX-License-Identifier: Apache-2.0
"""What a step sends between devices on each mesh, and what that allows at best on 8 to 512 chips.

    python -m experiments.scaling --model=base
    python -m experiments.scaling --model=base --compiler=v5e

The bytes are exact: they are read from the step that XLA compiled, for eight virtual CPU devices in
float32, or for eight TPU v5e chips in bfloat16, which need not be there (the extra `aot`); the latter
also tells which exchanges are scheduled beside computation. The efficiency is a prediction, from
those bytes, published link speeds and an assumed MFU; nothing here was timed. The plot needs the
extra `plots`.
"""

import datetime
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any

# Before anything imports JAX. Optimising code that is never run would take most of the time.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    # For a TPU that is not there.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from transformer_jax.collectives import Collective, bytes_of_collectives, bytes_sent
from transformer_jax.config import MeshConfig, resolve
from transformer_jax.dry_run import compile_step
from transformer_jax.flops import flops_of_step
from transformer_jax.training.step import abstract_state

_MODEL = flags.DEFINE_enum("model", "base", ["base", "big"], "Which of configs/.")
_COMPILER = flags.DEFINE_enum("compiler", "cpu", ["cpu", "v5e"], "What to compile for.")
RESULTS = Path(__file__).parent / "results"
MESHES = {
    "data=8": MeshConfig(8, 1, 1),
    "fsdp=8": MeshConfig(1, 8, 1),
    "tensor=8": MeshConfig(1, 1, 8),
    "data=2, fsdp=2, tensor=2": MeshConfig(2, 2, 2),
}
CHIPS = 8, 64, 512
ROWS, LENGTH = 384, 64  # of the batch of eight chips: the paper's 25,000 positions a side
MFU = 0.4  # assumed

# Peak FLOP/s in bfloat16, and bytes a second that a chip sends: among so many neighbours, and beyond.
#
# H200 (NVIDIA's data sheet, 2024): 1,979 TFLOP/s with sparsity, half of it without; NVLink 900 GB/s,
# half of it each way, among the eight of a machine. Beyond, a 400 Gb/s port of ConnectX-7 for each
# GPU (NVIDIA's data sheet of the DGX H200, 2024).
# v5e (Google's Cloud TPU documentation, 2023 to 2025): 197 TFLOP/s, 1,600 Gb/s between chips, that is
# four links of 400 Gb/s each way, of which a ring uses two. A pod has 256 chips; 512, which are two,
# are taken to be linked alike.
HARDWARE = {
    "H200": (989e12, 8, 450e9, 50e9),
    "v5e": (197e12, 512, 100e9, 100e9),
}


def at_scale(
    found: dict[Collective, int], mesh: MeshConfig, chips: int, weights: int
) -> tuple[dict[Collective, int], dict[Collective, int]]:
    """The collectives (inside, outside) of eights of chips.

    A data or fsdp axis grows; of other meshes there are more copies, which add up their gradients.
    """
    if chips == 8:
        return found, {}
    if 8 in (mesh.data, mesh.fsdp):
        return {Collective(of.kind, chips): size for of, size in found.items()}, {}
    gradient = 4 * weights // (mesh.fsdp * mesh.tensor)
    return found, {Collective("all-reduce", chips // 8): gradient}


def seconds(hardware: str, inside: dict[Collective, int], outside: dict[Collective, int]) -> float:
    """To send that: what goes over groups larger than the neighbourhood, or `outside` of it, goes slower."""
    _, neighbours, near, far = HARDWARE[hardware]
    return bytes_sent(outside) / far + sum(
        bytes_sent({of: size}) / (far if of.group > neighbours else near)
        for of, size in inside.items()
    )


def predict(
    hardware: str,
    flops: float,
    sent: tuple[dict[Collective, int], dict[Collective, int]],
    beside: tuple[dict[Collective, int], dict[Collective, int]] | None,
) -> dict[str, Any]:
    """Computing time over the step's time, where nothing overlaps and where everything does.

    `beside`: the part of it that the compiler has scheduled beside computation, if that is known.
    """
    computing = flops / (HARDWARE[hardware][0] * MFU)
    sending = seconds(hardware, *sent)
    predicted = {
        "hardware": hardware,
        "apart": computing / (computing + sending),
        "together": computing / max(computing, sending),
    }
    if beside is not None:
        overlapped = seconds(hardware, *beside)
        predicted["scheduled"] = computing / (max(computing, overlapped) + sending - overlapped)
    return predicted


def devices() -> list[Any]:
    """The eight to compile for."""
    if _COMPILER.value == "cpu":
        return jax.devices()
    return topologies.get_topology_desc("v5e:2x4", platform="tpu").devices


def measure(name: str) -> dict[str, Any]:
    """Compile the step on every mesh; the batch grows with the chips (weak scaling)."""
    on_tpu = _COMPILER.value == "v5e"
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.dtype = "bfloat16" if on_tpu else "float32"
    run = resolve(config)
    flops = flops_of_step(run.model, source=ROWS * LENGTH, target=ROWS * LENGTH)
    chips_here = np.array(devices())
    rows = []
    for title, sizes in MESHES.items():
        shape = sizes.data, sizes.fsdp, sizes.tensor
        axes = "data", "fsdp", "tensor"
        mesh = Mesh(chips_here.reshape(shape), axes, axis_types=(AxisType.Auto,) * 3)
        text = compile_step(run, mesh, ROWS, LENGTH).as_text() or ""
        found = bytes_of_collectives(text, 8)
        beside = bytes_of_collectives(text, 8, only_overlapped=True)
        leaves = jax.tree.leaves(abstract_state(run, mesh).params)
        weights = sum(math.prod(leaf.shape) for leaf in leaves)
        predicted = []
        for chips in CHIPS:
            sent = at_scale(found, sizes, chips, weights)
            # What other copies of a mesh add up is not in its schedule: taken not to overlap.
            overlapped = (at_scale(beside, sizes, chips, weights)[0], {}) if on_tpu else None
            predicted += [
                {"chips": chips, **predict(hardware, flops / 8, sent, overlapped)}
                for hardware in HARDWARE
                if hardware == "v5e" or not on_tpu
            ]
        collectives = [
            {"kind": of.kind, "group": of.group, "bytes": size, "beside": beside.get(of, 0)}
            for of, size in found.items()
        ]
        rows.append({"mesh": title, "collectives": collectives, "predicted": predicted})
        print(f"{title}: {sum(found.values()) / 1e6:,.0f} MB", flush=True)
    return {
        "model": name,
        "compiler": _COMPILER.value,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": jax.__version__,
        "flops": flops,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    on_tpu = result["compiler"] == "v5e"
    compiled = (
        "eight TPU v5e chips, bfloat16, weights and sums of gradients float32"
        if on_tpu
        else "eight virtual CPU devices, float32"
    )
    flag = " --compiler=v5e" if on_tpu else ""
    lines = [
        f"# What a step of {result['model']} sends",
        "",
        f"`python -m experiments.scaling --model={result['model']}{flag}`, {result['date']}, jax "
        f"{result['jax']}. Bytes of whole arrays a step, from the HLO of the step compiled for "
        f"{compiled}, {ROWS} x {LENGTH} positions a side, {result['flops'] / 1e12:.2f} TFLOP.",
        "",
        "| mesh | collective | devices in a group | MB a step |" + " beside computation |" * on_tpu,
        "|---|---|---|---|" + "---|" * on_tpu,
    ]
    for row in result["rows"]:
        for of in row["collectives"]:
            line = f"| {row['mesh']} | {of['kind']} | {of['group']} | {of['bytes'] / 1e6:,.3f} |"
            lines.append(line + f" {of['beside'] / of['bytes']:.0%} |" * on_tpu)
    kinds = ("apart", "scheduled", "together") if on_tpu else ("apart", "together")
    scheduled = " / as the compiler has scheduled it" if on_tpu else ""
    speeds = "v5e: two links of 400 Gb/s each way."
    if not on_tpu:
        speeds = (
            f"H200: NVLink 450 GB/s each way among 8, 400 Gb/s InfiniBand a GPU beyond. {speeds}"
        )
    lines += [
        "",
        f"Predicted, not measured: computing at {MFU:.0%} of the peak, rings, each chip with the batch "
        f"that it has on eight; efficiency where nothing overlaps{scheduled} / where everything does. "
        + speeds,
        "",
        "| mesh on 8 | hardware | " + " | ".join(f"{chips} chips" for chips in CHIPS) + " |",
        "|---|---|" + "---|" * len(CHIPS),
    ]
    for row in result["rows"]:
        for hardware in dict.fromkeys(of["hardware"] for of in row["predicted"]):
            cells = [
                " / ".join(f"{of[kind]:.0%}" for kind in kinds)
                for of in row["predicted"]
                if of["hardware"] == hardware
            ]
            lines.append(f"| {row['mesh']} | {hardware} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """The predictions without overlap, by chips."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: it needs matplotlib, pip install -e '.[plots]'")
        return
    found = list(dict.fromkeys(of["hardware"] for of in result["rows"][0]["predicted"]))
    size = 0.5 + 4 * len(found), 3.5
    figure, axes = pyplot.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for axis, hardware in zip(axes[0], found, strict=True):
        for row in result["rows"]:
            points = [of["apart"] for of in row["predicted"] if of["hardware"] == hardware]
            axis.plot(CHIPS, points, marker="o", label=row["mesh"])
        axis.set(xscale="log", xlabel="chips", title=hardware, ylim=(0, 1))
        axis.set_xticks(CHIPS, [str(chips) for chips in CHIPS])
        axis.minorticks_off()
    axes[0, 0].set_ylabel("predicted efficiency, no overlap")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main(_: Any) -> None:
    """Compile, write results/scaling.<model>[.v5e].{json,md} and the plot."""
    result = measure(_MODEL.value)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"scaling.{_MODEL.value}{'.v5e' if result['compiler'] == 'v5e' else ''}"
    Path(f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    Path(f"{stem}.md").write_text(table(result))
    plot(result, Path(f"{stem}.svg"))


if __name__ == "__main__":
    app.run(main)
