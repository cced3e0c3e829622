# SPDX-License-Identifier: Apache-2.0
"""One step of a run again, to find what was wrong with its batch: `main --replay_step`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from transformer_jax.checkpoints import load_config, load_params, saved_steps
from transformer_jax.config import Config
from transformer_jax.data import pipeline
from transformer_jax.data.batch import Tokens
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.run import check_same
from transformer_jax.training.loop import put
from transformer_jax.training.sharding import batch_ways, make_mesh
from transformer_jax.training.step import abstract_state, initial_state, make_gradients


def replay(config: Config, workdir: Path, step: int) -> str:
    """The loss, the gradient's norms and the sentences of a step; the run folder stays as it is.

    The batch is the step's own, to the bit, and so is the dropout. The weights are those of the last
    checkpoint before it, since those of every step are not kept.

    Raises:
      UserError: no run folder, or of another config; no such step.
    """
    if step < 1:
        raise UserError(f"--replay_step={step} is no step; the first is 1")
    check_same(load_config(workdir), config, workdir)
    mesh = make_mesh(config.mesh)
    before = [saved for saved in saved_steps(workdir) if saved < step]
    if before:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh).params)
        params = jax.device_put(load_params(workdir, str(before[-1]))[1], shardings)
    else:
        params = initial_state(config, mesh).params
    dataset = pipeline.prepare(config, workdir)
    multiple = batch_ways(mesh) * config.train.accumulate
    batch = next(
        pipeline.training_batches(dataset, config, start_step=step - 1, rows_multiple=multiple)
    )
    gradients = jax.jit(make_gradients(config, mesh))
    sums, grads = gradients(params, put(batch, mesh), np.int32(step - 1))
    weights = f"checkpoint {before[-1]}" if before else "the start"
    lines = [f"step {step}, with the weights of {weights}"]
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
