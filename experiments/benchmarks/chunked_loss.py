# SPDX-License-Identifier: Apache-2.0
"""What chunks of logits save and cost: whole training steps of base on a CPU, with them and without.

    python -m experiments.benchmarks.chunked_loss

Both steps are compiled in one process and take turns on the same batch of random tokens, 25,000 source
and 25,000 target positions as in section 5.1. Memory is what XLA says a step needs: state, batch and
temporary arrays.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from configs import base
from experiments.benchmarks.report import describe_machine, spread
from transformer_jax import errors, runtime
from transformer_jax.config import resolve
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import initial_state, make_train_step

_CHUNKS = flags.DEFINE_list("chunks", ["0", "512"], "Tokens whose logits exist at once; 0: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Steps of each that count.", lower_bound=1)
_TOKENS = flags.DEFINE_integer(
    "tokens", 25_000, "Positions of a side of the batch.", lower_bound=64
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


def compiled_step(chunk: int, batch: Batch) -> tuple[Any, Any, float]:
    """(step, its state, gigabytes that it needs)."""
    config = base.get_config()
    config.train.logits_chunk = chunk
    run = resolve(config)
    mesh = make_mesh(run.mesh)
    state = initial_state(run, mesh)
    step = make_train_step(run, mesh).lower(state, batch).compile()
    memory = step.memory_analysis()
    return step, state, (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9


def main(_: Sequence[str]) -> None:
    """Let the steps take turns; print and save what they did."""
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"  # so that the memory of a device is that of the step
    runtime.set_up()
    batch = random_batch(_TOKENS.value, resolve(base.get_config()).model.vocab_size)
    batch = jax.device_put(batch)
    steps = {chunk: compiled_step(int(chunk), batch) for chunk in _CHUNKS.value}
    seconds: dict[str, list[float]] = {chunk: [] for chunk in steps}
    losses: dict[str, float] = {}
    for number in range(1 + _ROUNDS.value):  # the first is to warm up
        for chunk, (step, state, gigabytes) in steps.items():
            start = time.perf_counter()
            state, sums = jax.block_until_ready(step(state, batch))
            if number:
                seconds[chunk].append(time.perf_counter() - start)
            losses[chunk] = float(sums.loss / sums.tokens)
            steps[chunk] = step, state, gigabytes
    plain, *chunked = steps
    result = {
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__},
        "positions_a_side": _TOKENS.value,
        "seconds": {chunk: spread(of) for chunk, of in seconds.items()},
        "gigabytes": {chunk: gigabytes for chunk, (*_, gigabytes) in steps.items()},
        "last_loss": losses,
        "time_over_plain": {
            chunk: statistics.median(
                ours / its for ours, its in zip(seconds[chunk], seconds[plain], strict=True)
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
