# SPDX-License-Identifier: Apache-2.0
"""What sharding itself costs: a step on eight virtual devices against the same step on one.

    python -m experiments.benchmarks.devices
    python -m experiments.benchmarks.devices --model=tiny --repeats=3

Both are processes of our own training loop on a CPU, one with one device, one with eight that share
each batch (`data=8`); the cores, the batches and the arithmetic are the same. They take turns, and the
time of eight over the time of one is taken within a round. Needs the extra `benchmark` for psutil.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.benchmarks.report import describe_machine, summary, table
from experiments.benchmarks.turns import Worker, take_turns
from transformer_jax import errors

_MODEL = flags.DEFINE_enum("model", "base", ["tiny", "base"], "The model's sizes.")
_BATCH_TOKENS = flags.DEFINE_integer(
    "batch_tokens", 4096, "Of a step, a side; all devices together.", lower_bound=1024
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds that count.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a turn, about.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "experiments/results/devices_cpu.json", "The figures.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark-devices", "Tokenised data and logs.")

_CONTESTANTS = {"ours-1-device": 1, "ours-8-devices": 8}


def main(_: Sequence[str]) -> None:
    """Prepare the data, let the two take turns, print and save what they did."""
    folder = Path(_WORKDIR.value).absolute()
    config = prepare_data(_MODEL.value, _BATCH_TOKENS.value, folder)
    machine = describe_machine()
    workers: list[Worker] = []
    try:
        for name, devices in _CONTESTANTS.items():
            workers.append(Worker(name, folder, config, {"JAX_NUM_CPU_DEVICES": str(devices)}))
        laps = take_turns(
            workers, rounds=_REPEATS.value, amount=_STEPS.value * 2 * _BATCH_TOKENS.value * 9 // 10
        )
    finally:
        for worker in workers:
            worker.close()
    versions = {key: value for worker in workers for key, value in worker.versions.items()}
    command = shlex.join(["python", "-m", "experiments.benchmarks.devices", *sys.argv[1:]])
    result = summary(laps) | {"command": command, "machine": machine, "versions": versions}
    output = Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(_MODEL.value, result))
    one, eight = _CONTESTANTS
    ratio = result[f"{one} over"][eight]
    print(
        f"\nA step on eight devices takes {ratio['median'] - 1:+.1%} "
        f"({ratio['min'] - 1:+.1%} to {ratio['max'] - 1:+.1%}) over one on the same batch."
    )


def prepare_data(model: str, batch_tokens: int, folder: Path) -> Path:
    """Tokenise the phrasebook once, for both; the path of the config."""
    from configs import base, demo, multi30k  # after the flags: --help need not wait for JAX
    from transformer_jax.config import resolve
    from transformer_jax.data.pipeline import prepare

    wanted = {"tiny": multi30k, "base": base}[model].get_config()
    sizes = resolve(wanted).model  # with the model's own vocabulary, of which the text uses a part
    wanted.data = demo.get_config().data
    wanted.data.batch_tokens = batch_tokens
    wanted.data.splits = {"train": "train", "validation": "", "test": ""}
    run = dataclasses.replace(resolve(wanted), model=sizes)
    prepare(run, folder)
    config = folder / f"{model}.json"
    config.write_text(run.to_json(), encoding="utf-8")
    return config


if __name__ == "__main__":
    errors.run_command(main)
