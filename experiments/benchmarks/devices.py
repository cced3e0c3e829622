# SPDX-License-Identifier: Apache-2.0
"""What sharding itself costs: a step on eight virtual devices against the same step on one.

    python -m experiments.benchmarks.devices
    python -m experiments.benchmarks.devices --axis=fsdp --batch_tokens=4096 --noremat
    python -m experiments.benchmarks.devices --model=tiny --noremat --repeats=5

Both are processes of our own training loop on a CPU, one with one device, one with eight that share
each batch; the cores, the batches and the arithmetic are the same. They take turns, and medians are of
single steps. What eight do that one does not: add up eight gradients, and change eight copies of the
weights or, along `fsdp`, gather them. Figures of other sizes are kept beside each other.
The batch is the paper's, and layers are rematerialised, because one device would need more than 20 GB
without that. A process starts anew for each of its turns, so that memory need not hold both. Both take
huge pages: eight devices' arrays are given back after each step (transformer_jax/runtime.py), and common
pages would cost them time that is not sharding's. Needs the extra `benchmark` for psutil.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.benchmarks.report import describe_machine, save, summary, table
from experiments.benchmarks.turns import Laps, Worker, take_turns
from transformer_jax import errors

_MODEL = flags.DEFINE_enum("model", "base", ["tiny", "base"], "The model's sizes.")
_AXIS = flags.DEFINE_enum("axis", "data", ["data", "fsdp"], "Of the mesh; eight devices along it.")
_BATCH_TOKENS = flags.DEFINE_integer(
    "batch_tokens", 25_000, "Of a step, a side; all devices together.", lower_bound=1024
)
_REMAT = flags.DEFINE_bool("remat", True, "Layers keep their inputs alone (config.train.remat).")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Processes of each.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 6, "That each process is timed for.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "experiments/results/devices_cpu.json", "The figures.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark-devices", "Tokenised data and logs.")

_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CONTESTANTS = {"ours-1-device": 1, "ours-8-devices": 8}


def main(_: Sequence[str]) -> None:
    """Prepare the data, let the two take turns, print and save what they did."""
    folder = Path(_WORKDIR.value).absolute()
    machine = describe_machine()
    configs = {name: prepare_data(folder, devices) for name, devices in _CONTESTANTS.items()}
    laps: Laps = {name: [] for name in _CONTESTANTS}
    versions: dict[str, str] = {}
    for _ in range(_REPEATS.value):
        for name, devices in _CONTESTANTS.items():
            environment = {"JAX_NUM_CPU_DEVICES": str(devices)} | _HUGE_PAGES
            worker = Worker(name, folder, configs[name], environment)
            try:
                laps[name] += take_turns([worker], rounds=_STEPS.value, amount=1)[name]
            finally:
                worker.close()
            versions |= worker.versions
    command = shlex.join(["python", "-m", "experiments.benchmarks.devices", *sys.argv[1:]])
    result = summary(laps) | {"command": command, "machine": machine, "versions": versions}
    key = f"{_MODEL.value}, {_AXIS.value}=8, {_BATCH_TOKENS.value:,} positions a side"
    if _REMAT.value:
        key += ", layers rematerialised"
    save(Path(_OUTPUT.value), key, result, title="Eight virtual devices beside one", table=table)
    print(table(key, result))
    one, eight = _CONTESTANTS
    ratio = result[f"{one} over"][eight]
    print(
        f"\nA step on eight devices takes {ratio['median'] - 1:+.1%} "
        f"({ratio['min'] - 1:+.1%} to {ratio['max'] - 1:+.1%}) over one on the same batch."
    )


def prepare_data(folder: Path, devices: int) -> Path:
    """Tokenise the phrasebook once, for both; the path of the config for so many devices."""
    from configs import base, demo, multi30k  # after the flags: --help need not wait for JAX
    from transformer_jax.config import resolve
    from transformer_jax.data.pipeline import prepare

    wanted = {"tiny": multi30k, "base": base}[_MODEL.value].get_config()
    sizes = resolve(wanted).model  # with the model's own vocabulary, of which the text uses a part
    wanted.data = demo.get_config().data
    wanted.data.batch_tokens = _BATCH_TOKENS.value
    wanted.data.splits = {"train": "train", "validation": "", "test": ""}
    wanted.train.remat = _REMAT.value
    wanted.train.logits_chunk = 512  # on a CPU the fastest: experiments/README.md
    wanted.mesh = {"data": 1, "fsdp": 1, "tensor": 1, _AXIS.value: devices}
    run = dataclasses.replace(resolve(wanted), model=sizes)
    prepare(run, folder)
    config = folder / f"{_MODEL.value}.{devices}.json"
    config.write_text(run.to_json(), encoding="utf-8")
    return config


if __name__ == "__main__":
    errors.run_command(main)
