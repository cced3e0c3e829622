# SPDX-License-Identifier: Apache-2.0
"""One step of a run again, to find what was wrong with its batch: `main --replay_step`."""

import itertools
import logging
from pathlib import Path
from typing import Any

import jax
import optax

from transformer_jax.checkpoints import load_config, load_state, saved_steps
from transformer_jax.config import Config
from transformer_jax.data import pipeline
from transformer_jax.data.batch import Tokens
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.run import check_same, first_state, settled
from transformer_jax.training.loop import put
from transformer_jax.training.sharding import batch_ways, make_mesh
from transformer_jax.training.step import (
    abstract_state,
    make_gradients,
    make_train_step,
)

log = logging.getLogger(__name__)


def replay(config: Config, workdir: Path, step: int) -> str:
    """The loss, the gradient's norms and the sentences of a step; the run's checkpoints stay as they are.

    The steps from the last checkpoint before it are made again, and not saved: on the same devices
    the weights are those that the step had, to the bit, and so are its batch and its dropout.

    Raises:
      UserError: no run folder, or of another config; no such step; many processes.
    """
    if step < 1:
        raise UserError(f"--replay_step={step} is no step; the first is 1")
    if step > config.train.num_steps:
        raise UserError(
            f"--replay_step={step} is no step of the run; config.train.num_steps is {config.train.num_steps}"
        )
    if jax.process_count() > 1:
        raise UserError(
            "--replay_step needs one process; leave out --distributed and --coordinator, on one host, "
            "with a config.mesh that fits it"
        )
    config = settled(config, workdir)
    check_same(load_config(workdir), config, workdir)
    mesh = make_mesh(config.mesh)
    before = max((saved for saved in saved_steps(workdir) if saved < step), default=0)
    if before:
        state = load_state(workdir, before, abstract_state(config, mesh))
    else:
        state = first_state(config, mesh)
    dataset = pipeline.prepared(config, workdir)
    multiple = batch_ways(mesh) * config.train.accumulate
    batches = pipeline.training_batches(dataset, config, start_step=before, rows_multiple=multiple)
    if before < step - 1:
        log.info("steps %d to %d are made again", before + 1, step - 1)
        train_step = make_train_step(config, mesh)
        for batch in itertools.islice(batches, step - 1 - before):
            # One at a time: batches that wait would fill the memory.
            state = jax.block_until_ready(train_step(state, put(batch, mesh))[0])
    batch = next(batches)
    gradients = jax.jit(make_gradients(config, mesh))
    sums, grads = gradients(state.params, put(batch, mesh), state.step)
    start = f"checkpoint {before}" if before else "the start"
    lines = [f"step {step}, computed from {start} on"]
    lines.append(f"loss {float(sums.loss / sums.tokens):.6g} a token, {int(sums.tokens)} tokens")
    lines += [f"gradient {name:24} {norm:.6g}" for name, norm in _norms(grads).items()]
    sides = (_sentences(side, dataset.vocabulary) for side in (batch.source, batch.target))
    for (place, source), (_, target) in zip(*sides, strict=True):
        lines.append(f"row {place[0]} sentence {place[1]}: {source} ||| {target}")
    return "\n".join(lines)


def _norms(grads: dict[str, Any]) -> dict[str, float]:
    """The gradient's norm by group of parameters: the embedding, each layer, and all together."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        layered = names[0] in ("encoder", "decoder")
        groups.setdefault("/".join(names[: 2 if layered else 1]), []).append(leaf)
    norms = {name: float(optax.tree.norm(leaves)) for name, leaves in groups.items()}
    return {**norms, "all": float(optax.tree.norm(grads))}


def _sentences(side: Tokens, vocabulary: Vocabulary) -> list[tuple[tuple[int, int], str]]:
    """((row, number in the row), text) of every sentence."""
    places = [
        (row, number)
        for row, segments in enumerate(side.segments)
        for number in range(1, int(segments.max(initial=0)) + 1)
    ]
    ids = [side.ids[row][side.segments[row] == number] for row, number in places]
    return list(zip(places, vocabulary.decode(ids), strict=True))
