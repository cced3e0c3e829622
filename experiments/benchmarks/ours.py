# SPDX-License-Identifier: Apache-2.0
"""Our contestant: the training loop of transformer_jax without evaluation and checkpoints."""

import collections
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.worker import Lap
from transformer_jax import runtime
from transformer_jax.config import resolve
from transformer_jax.data.pipeline import prepare, training_batches
from transformer_jax.training.loop import put, steps_ahead
from transformer_jax.training.loss import LossSums
from transformer_jax.training.sharding import batch_ways, make_mesh
from transformer_jax.training.step import initial_state, make_train_step

_AN_EPOCH = 200  # batches, at least, of Multi30k


class Ours:
    """What `python -m transformer_jax.main` runs between two evaluations."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        """A fresh model; `folder` has the tokenised pairs, `config` is our config.json."""
        runtime.set_up()
        run = resolve(config)
        self._mesh = make_mesh(run.mesh)
        self._step = make_train_step(run, self._mesh)
        self._state = initial_state(run, self._mesh)
        dataset = prepare(run, folder)
        rows = batch_ways(self._mesh)
        self._batches = training_batches(dataset, run, start_step=0, rows_multiple=rows)
        # Every shape of batch is compiled here, as a run does in its first epoch.
        epoch = itertools.islice(
            training_batches(dataset, run, start_step=0, rows_multiple=rows), _AN_EPOCH
        )
        for batch in {batch.source.ids.shape: batch for batch in epoch}.values():
            self._state, _ = self._step(self._state, put(batch, self._mesh))
            jax.block_until_ready(self._state)  # one at a time has its arrays in memory

    def versions(self) -> dict[str, str]:
        """What this contestant is made of."""
        return {"jax": jax.__version__}

    def lap(self, tokens: int) -> Lap:
        """Train until at least so many real tokens are seen, and all steps are done."""
        lap = Lap()
        in_flight: collections.deque[tuple[int, int, int, LossSums]] = collections.deque()

        def finish() -> None:
            seen, positions, target_tokens, sums = in_flight.popleft()
            lap.add(seen, positions, target_tokens, float(sums.loss))

        begun = 0
        while begun < tokens:
            batch = next(self._batches)
            self._state, sums = self._step(self._state, put(batch, self._mesh))
            source, target = batch.source.segments, batch.target.segments
            real = int(np.count_nonzero(target))
            seen = int(np.count_nonzero(source)) + real
            in_flight.append((seen, source.size + target.size, real, sums))
            begun += seen
            if len(in_flight) > steps_ahead(self._mesh):
                finish()
        while in_flight:
            finish()
        jax.block_until_ready(self._state)
        return lap
