# SPDX-License-Identifier: Apache-2.0
"""Twenty steps on real sentences: every mesh is one device, and a run moves from mesh to mesh."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from transformer_jax.checkpoints import Checkpoints
from transformer_jax.config import Config, default_config, resolve
from transformer_jax.data import phrasebook, pipeline
from transformer_jax.training.loop import put
from transformer_jax.training.sharding import batch_ways
from transformer_jax.training.step import (
    TrainState,
    abstract_state,
    initial_state,
    make_train_step,
)

STEPS = 20


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


MESHES = {
    "data=8": mesh_of(data=8),
    "fsdp=8": mesh_of(fsdp=8),
    "data=2,fsdp=2,tensor=2": mesh_of(2, 2, 2),
}
ALL_AXES = [*MESHES][-1]


def noisy(path: str, splits: dict[str, str], vocab_size: int) -> Config:
    """A small model with dropout, on a corpus."""
    config = default_config()
    config.model.num_layers = 1
    config.model.d_model = 24
    config.model.d_ff = 40
    config.model.num_heads = 4
    config.model.d_k, config.model.d_v = 6, 10
    config.model.dropout = 0.2
    config.data.path = path
    config.data.splits = splits
    config.data.vocab_size = vocab_size
    config.data.max_length = 64
    config.data.batch_tokens = 1024  # 16 rows of 64
    config.optimizer.warmup_steps, config.optimizer.peak_rate = 10, 2e-3
    config.optimizer.epsilon = 1e-5  # not to blow up the rounding of gradients that are zero
    config.train.logits_chunk = 100
    return resolve(config)


@dataclasses.dataclass
class Corpus:
    """A run without devices."""

    config: Config
    dataset: pipeline.Dataset

    def train(
        self, mesh: Mesh, state: TrainState | None = None, until: int = STEPS
    ) -> tuple[list[float], TrainState]:
        """The loss of every step from the state's on, and the state after them."""
        state = initial_state(self.config, mesh) if state is None else state
        start = int(state.step)
        step = make_train_step(self.config, mesh)
        batches = pipeline.training_batches(
            self.dataset, self.config, start_step=start, rows_multiple=batch_ways(mesh)
        )
        losses = []
        for batch in itertools.islice(batches, until - start):
            state, sums = step(state, put(batch, mesh))
            losses.append(float(sums.loss / sums.tokens))
        return losses, state


def corpus(folder: Path, config: Config) -> Corpus:
    return Corpus(config, pipeline.prepare(config, folder))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Corpus:
    """The first 2,000 pairs of the phrasebook."""
    folder = tmp_path_factory.mktemp("phrasebook")
    pairs = phrasebook.pairs("train")[:2000]
    for language, side in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        text = "".join(f"{sentence}\n" for sentence in side)
        (folder / f"train.{language}").write_text(text, encoding="utf-8")
    splits = {"train": "train", "validation": "", "test": ""}
    return corpus(folder / "run", noisy(str(folder / "{split}.{lang}"), splits, 200))


@pytest.fixture(scope="module")
def one_device(sentences) -> tuple[list[float], TrainState]:
    return sentences.train(mesh_of())


def assert_same(found: tuple[list[float], TrainState], expected: tuple[list[float], TrainState]):
    """Losses to 1e-5, parameters to 1e-4."""
    assert len(found[0]) <= len(expected[0])
    np.testing.assert_allclose(found[0], expected[0][-len(found[0]) :], rtol=1e-5)
    weights = [jax.tree.leaves(jax.device_get(state.params)) for _, state in (found, expected)]
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "mesh",
    [*(pytest.param(of, marks=pytest.mark.slow) for of in MESHES if of != ALL_AXES), ALL_AXES],
)
def test_every_mesh_trains_what_one_device_does(sentences, one_device, mesh):
    assert_same(sentences.train(MESHES[mesh]), one_device)


def test_a_difference_would_show(one_device):
    losses, state = one_device
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(([*losses[:-1], losses[-1] * 1.0001], state), one_device)
    params = jax.tree.map(lambda leaf: leaf + 3e-4, state.params)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same((losses, dataclasses.replace(state, params=params)), one_device)


@pytest.mark.slow  # tests/test_distributed.py goes on on other meshes, too
def test_a_run_goes_on_on_other_devices(sentences, one_device, tmp_path):
    """Eight devices, then four, then one, then weights split in two: the losses of one device."""
    ways = mesh_of(data=8), mesh_of(data=4), mesh_of(), mesh_of(fsdp=2)
    losses, state = [], None
    for number, mesh in enumerate(ways, start=1):
        with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
            state = checkpoints.restore(abstract_state(sentences.config, mesh))
            assert (state is None) == (number == 1)
            more, state = sentences.train(mesh, state, until=number * STEPS // len(ways))
            checkpoints.save(state)
            checkpoints.wait()
        losses += more
    assert len(losses) == STEPS
    assert_same((losses, state), one_device)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_trains_what_one_device_does_on_multi30k(multi30k, tmp_path, mesh):
    splits = {"train": "train", "validation": "", "test": ""}
    config = noisy(str(multi30k / "{split}.{lang}"), splits, 2000)
    captions = corpus(tmp_path / "run", config)
    assert_same(captions.train(MESHES[mesh]), captions.train(mesh_of()))
