# SPDX-License-Identifier: Apache-2.0
"""What a step sends between devices on each mesh, and what that allows at best on 8 to 512 chips.

    python -m experiments.scaling --model=base

The bytes are exact: they are read from the step that XLA compiled for eight virtual CPU devices, in
float32. The efficiency is a prediction, from those bytes, published link speeds and an assumed MFU;
nothing here was timed. The plot needs the extra `plots`.
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
}

import jax
from absl import app, flags

from transformer_jax.collectives import Collective, bytes_of_collectives, bytes_sent
from transformer_jax.config import MeshConfig, resolve
from transformer_jax.dry_run import compile_step
from transformer_jax.flops import flops_of_step
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import abstract_state

_MODEL = flags.DEFINE_enum("model", "base", ["base", "big"], "Which of configs/.")
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
# NVIDIA's data sheet of the H200: 989 TFLOP/s dense, NVLink 900 GB/s, half of it each way; then one
# 400 Gb/s InfiniBand port a GPU. Google's documentation of v5e: 197 TFLOP/s, 1,600 Gb/s of links
# between chips, taken as half each way; a pod has 256 chips, and 512 are taken to be linked alike.
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


def predict(
    hardware: str, flops: float, inside: dict[Collective, int], outside: dict[Collective, int]
) -> dict[str, Any]:
    """Computing time over the step's time, where nothing overlaps and where everything does.

    What goes over groups larger than the neighbourhood, or `outside` of it, has the slower link's pace.
    """
    peak, neighbours, near, far = HARDWARE[hardware]
    computing = flops / (peak * MFU)
    sending = bytes_sent(outside) / far
    for of, size in inside.items():
        sending += bytes_sent({of: size}) / (far if of.group > neighbours else near)
    return {
        "hardware": hardware,
        "apart": computing / (computing + sending),
        "together": computing / max(computing, sending),
    }


def measure(name: str) -> dict[str, Any]:
    """Compile the step on every mesh; the batch grows with the chips (weak scaling)."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.dtype = "float32"
    run = resolve(config)
    flops = flops_of_step(run.model, source=ROWS * LENGTH, target=ROWS * LENGTH)
    rows = []
    for title, sizes in MESHES.items():
        mesh = make_mesh(sizes)
        found = bytes_of_collectives(compile_step(run, mesh, ROWS, LENGTH).as_text(), 8)
        leaves = jax.tree.leaves(abstract_state(run, mesh).params)
        weights = sum(math.prod(leaf.shape) for leaf in leaves)
        predicted = []
        for chips in CHIPS:
            parts = at_scale(found, sizes, chips, weights)
            predicted += [
                {"chips": chips, **predict(hardware, flops / 8, *parts)} for hardware in HARDWARE
            ]
        collectives = [
            {"kind": of.kind, "group": of.group, "bytes": size} for of, size in found.items()
        ]
        rows.append({"mesh": title, "collectives": collectives, "predicted": predicted})
        print(f"{title}: {sum(found.values()) / 1e6:,.0f} MB", flush=True)
    return {
        "model": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": jax.__version__,
        "flops": flops,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"# What a step of {result['model']} sends",
        "",
        f"`python -m experiments.scaling --model={result['model']}`, {result['date']}, jax "
        f"{result['jax']}. Bytes of whole arrays a step, from the HLO of the step compiled for eight "
        f"virtual CPU devices, float32, {ROWS} x {LENGTH} positions a side, "
        f"{result['flops'] / 1e12:.2f} TFLOP.",
        "",
        "| mesh | collective | devices in a group | MB a step |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        for of in row["collectives"]:
            size = f"{of['bytes'] / 1e6:,.3f}"
            lines.append(f"| {row['mesh']} | {of['kind']} | {of['group']} | {size} |")
    lines += [
        "",
        f"Predicted, not measured: computing at {MFU:.0%} of the peak, rings, each chip with the batch "
        "that it has on eight; efficiency where nothing overlaps / where everything does. H200: NVLink "
        "450 GB/s each way among 8, 400 Gb/s InfiniBand a GPU beyond. v5e: half of 1,600 Gb/s each way.",
        "",
        "| mesh on 8 | hardware | " + " | ".join(f"{chips} chips" for chips in CHIPS) + " |",
        "|---|---|" + "---|" * len(CHIPS),
    ]
    for row in result["rows"]:
        for hardware in HARDWARE:
            cells = [
                f"{of['apart']:.0%} / {of['together']:.0%}"
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
    figure, axes = pyplot.subplots(1, len(HARDWARE), figsize=(9, 3.5), sharey=True)
    for axis, hardware in zip(axes, HARDWARE, strict=True):
        for row in result["rows"]:
            points = [of["apart"] for of in row["predicted"] if of["hardware"] == hardware]
            axis.plot(CHIPS, points, marker="o", label=row["mesh"])
        axis.set(xscale="log", xticks=CHIPS, xticklabels=CHIPS, xlabel="chips", title=hardware)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("predicted efficiency, no overlap")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main(_: Any) -> None:
    """Compile, write results/scaling.<model>.{json,md} and the plot."""
    result = measure(_MODEL.value)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"scaling.{_MODEL.value}"
    Path(f"{stem}.json").write_text(json.dumps(result, indent=2) + "\n")
    Path(f"{stem}.md").write_text(table(result))
    plot(result, Path(f"{stem}.svg"))


if __name__ == "__main__":
    app.run(main)
