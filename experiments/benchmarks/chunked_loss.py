# SPDX-License-Identifier: Apache-2.0
"""What chunks of logits save and cost: whole training steps of base on a CPU, with them and without.

    python -m experiments.benchmarks.chunked_loss

Memory is what XLA says a step needs with a batch of the paper's size, 25,000 source and 25,000 target
positions (section 5.1): state, batch and temporary arrays. That may be more than there is, so that time
is measured with fewer: the steps take turns in one process on the same batch of random tokens.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from configs import base
from experiments.benchmarks.report import describe_machine, spread
from transformer_jax import errors, runtime
from transformer_jax.config import Config, resolve
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.dry_run import bytes_needed, compile_step
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import initial_state

_CHUNKS = flags.DEFINE_list("chunks", ["0", "512"], "Tokens whose logits exist at once; 0: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Steps of each that count.", lower_bound=1)
_TOKENS = flags.DEFINE_integer(
    "tokens", 25_000, "Positions of a side of the batch whose memory is told.", lower_bound=64
)
_TIMED_TOKENS = flags.DEFINE_integer(
    "timed_tokens", 10_000, "Of the batch that is timed; base needs 13 GB.", lower_bound=64
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
    return resolve(config)


def main(_: Sequence[str]) -> None:
    """Compile the large steps, let the smaller ones take turns; print and save what came of it."""
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # so that the memory of a device is that of the step
    runtime.set_up()
    runs = {chunk: base_with(int(chunk)) for chunk in _CHUNKS.value}
    mesh = make_mesh(base_with(0).mesh)
    needed = {}
    for chunk, run in runs.items():
        step = compile_step(run, mesh, _TOKENS.value // _LENGTH, _LENGTH)
        needed[chunk] = bytes_needed(step.memory_analysis()) / 1e9
    batch = jax.device_put(random_batch(_TIMED_TOKENS.value, base_with(0).model.vocab_size))
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
    plain, *chunked = steps
    result = {
        "command": shlex.join(
            ["python", "-m", "experiments.benchmarks.chunked_loss", *sys.argv[1:]]
        ),
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__},
        "positions_a_side": {"memory": _TOKENS.value, "time": _TIMED_TOKENS.value},
        "gigabytes": needed,
        "seconds": {chunk: spread(of) for chunk, of in seconds.items()},
        "last_loss": losses,
        "memory_over_plain": {chunk: needed[chunk] / needed[plain] for chunk in chunked},
        "time_over_plain": {
            chunk: spread(
                [ours / its for ours, its in zip(seconds[chunk], seconds[plain], strict=True)]
            )
            for chunk in chunked
        },
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    path = Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    errors.run_command(main)
