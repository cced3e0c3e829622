# SPDX-License-Identifier: Apache-2.0
"""What chunks of logits save and cost: whole training steps of base on a CPU, with them and without.

    python -m experiments.benchmarks.chunked_loss --remat
    python -m experiments.benchmarks.chunked_loss --timed_tokens=6000

Memory is what XLA says a step needs with a batch of the paper's size, 25,000 source and 25,000 target
positions (section 5.1): state, batch and temporary arrays. Without rematerialised layers that may be more
than there is; time is then measured with fewer. The steps take turns in one process on the same batch of
random tokens.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from configs import base
from experiments.benchmarks.report import describe_machine, save, spread
from transformer_jax import errors, runtime
from transformer_jax.config import Config, resolve
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.dry_run import bytes_needed, compile_step
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import initial_state

_CHUNKS = flags.DEFINE_list("chunks", ["0", "512"], "Tokens whose logits exist at once; 0: all.")
_REMAT = flags.DEFINE_bool("remat", False, "Layers keep their inputs alone (config.train.remat).")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Steps of each that count.", lower_bound=1)
_TOKENS = flags.DEFINE_integer(
    "tokens", 25_000, "Positions of a side of the batch whose memory is told.", lower_bound=64
)
_TIMED_TOKENS = flags.DEFINE_integer(
    "timed_tokens", 25_000, "Of the batch that is timed.", lower_bound=64
)
_OUTPUT = flags.DEFINE_string(
    "output", "experiments/results/chunked_loss_cpu.json", "Where the figures go."
)
_LENGTH = 64


def random_batch(tokens: int, vocabulary: int) -> Batch:
    """Rows of 64 positions, each one sentence."""
    rng = np.random.default_rng(0)
    rows = tokens // _LENGTH
    positions = np.broadcast_to(np.arange(_LENGTH, dtype=np.int32), (rows, _LENGTH))

    def side() -> Tokens:
        ids = rng.integers(3, vocabulary, (rows, _LENGTH)).astype(np.int32)
        return Tokens(ids, np.ones_like(ids), positions)

    return Batch(side(), side(), np.arange(rows, dtype=np.int32))


def base_with(chunk: int) -> Config:
    """The run of configs/base.py with so many tokens' logits at once."""
    config = base.get_config()
    config.train.logits_chunk = chunk
    config.train.remat = _REMAT.value
    return resolve(config)


def main(_: Sequence[str]) -> None:
    """Compile the large steps, let the smaller ones take turns; print and save what came of it."""
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # so that the memory of a device is that of the step
    runtime.set_up()
    runs = {chunk: base_with(int(chunk)) for chunk in _CHUNKS.value}
    any_run = next(iter(runs.values()))  # their mesh and vocabulary are the same
    mesh = make_mesh(any_run.mesh)
    needed = {}
    for chunk, run in runs.items():
        step = compile_step(run, mesh, _TOKENS.value // _LENGTH, _LENGTH)
        needed[chunk] = bytes_needed(step.memory_analysis()) / 1e9
    batch = jax.device_put(random_batch(_TIMED_TOKENS.value, any_run.model.vocab_size))
    rows = batch.rows.size
    steps = {
        chunk: (compile_step(run, mesh, rows, _LENGTH), initial_state(run, mesh))
        for chunk, run in runs.items()
    }
    seconds: dict[str, list[float]] = {chunk: [] for chunk in steps}
    losses: dict[str, float] = {}
    for number in range(1 + _ROUNDS.value):  # the first is to warm up
        for chunk, (step, state) in steps.items():
            start = time.perf_counter()
            state, sums = jax.block_until_ready(step(state, batch))
            if number:
                seconds[chunk].append(time.perf_counter() - start)
            losses[chunk] = float(sums.loss / sums.tokens)
            steps[chunk] = step, state
    result = {
        "command": shlex.join(
            ["python", "-m", "experiments.benchmarks.chunked_loss", *sys.argv[1:]]
        ),
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__},
        "positions_a_side": {"memory": _TOKENS.value, "time": _TIMED_TOKENS.value},
        "gigabytes": needed,
        "seconds": seconds,
        "last_loss": losses,
    }
    key = "layers rematerialised" if _REMAT.value else "layers that keep all arrays"
    save(Path(_OUTPUT.value), key, result, title="The loss in chunks of logits", table=table)
    print(table(key, result))


def table(key: str, result: dict[str, Any]) -> str:
    """The figures as Markdown; ratios are of steps of one round."""
    machine, positions = result["machine"], result["positions_a_side"]
    plain, *_ = result["gigabytes"]
    lines = [
        f"`{result['command']}`",
        "",
        f"base, {key}, one device, {machine['cores']} cores of {machine['cpu']}, "
        f"jax {result['versions']['jax']}, commit {machine['commit']}, {machine['date'][:10]}; "
        f"medians (min to max) of {len(result['seconds'][plain])} rounds",
        "",
        f"| logits at once | GB, {positions['memory']:,} positions a side | of those with all at once "
        f"| seconds, {positions['time']:,} positions a side | of those with all at once |",
        "|---|---|---|---|---|",
    ]
    for chunk, memory in result["gigabytes"].items():
        seconds = result["seconds"][chunk]
        pairs = zip(seconds, result["seconds"][plain], strict=True)
        ratios = "" if chunk == plain else _text([ours / its for ours, its in pairs])
        lines.append(
            f"| {'of ' + chunk + ' tokens' if int(chunk) else 'all'} | {memory:.1f} "
            f"| {memory / result['gigabytes'][plain]:.2f} | {_text(seconds)} | {ratios} |"
        )
    return "\n".join(lines)


def _text(values: list[float]) -> str:
    of = spread(values)
    return f"{of['median']:.2f} ({of['min']:.2f} to {of['max']:.2f})"


if __name__ == "__main__":
    errors.run_command(main)
