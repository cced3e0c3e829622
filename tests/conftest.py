# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: eight virtual CPU devices, shape checks, small configs."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

# Before anything imports JAX.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, of functions that run once or twice. XLA's older emitters
# make a loop of a fusion in a third less of it than those through MLIR; jaxlib 0.12 has no others.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# What one test has compiled serves the others, in both workers and in the processes that tests start:
# all inherit the first one's folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="transformer_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import ml_collections
import numpy as np
import pytest

# Every annotated shape of our own packages is checked in the tests, and only there.
jaxtyping.install_import_hook(
    [
        "transformer_jax.model",
        "transformer_jax.training",
        "transformer_jax.inference",
        "transformer_jax.evaluation",
        "attention_kernels",
    ],
    "beartype.beartype",
).__enter__()

from tests.small_runs import tiny, write_corpus  # noqa: E402
from transformer_jax.config import default_config, resolve  # noqa: E402
from transformer_jax.data.batch import Batch, Tokens  # noqa: E402
from transformer_jax.run import run_training  # noqa: E402

hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.load_profile("default")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def _no_search_for_garbage_in_what_stays():
    """JAX keeps what it has traced: millions of objects, which every full collection would visit."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """The longest first, those with processes of their own, lest one worker waits for them at the end."""
    longest = ("test_torture.py", "test_distributed.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture
def multi30k() -> Path:
    """The folder of the real corpus that some tests use; they skip without it."""
    folder = SHARED_DATA / "multi30k"
    if not folder.is_dir():
        pytest.skip("Multi30k is not at ../shared/data/multi30k")
    return folder


@pytest.fixture
def small_config() -> ml_collections.ConfigDict:
    """A model whose sizes are distinct and small, on the phrasebook."""
    config = default_config()
    config.model.num_layers = 1
    config.model.d_model = 24
    config.model.d_ff = 40
    config.model.num_heads = 4
    config.model.d_k = 6
    config.model.d_v = 10
    config.data.source = "phrasebook"
    config.data.vocab_size = 96
    config.data.max_length = 32
    config.data.batch_tokens = 512
    config.optimizer.warmup_steps = 10
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run to its end: its config and its summary."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny(write_corpus(folder / "corpus"))
    return config, run_training(resolve(config), folder / "run")


def random_tokens(
    rng: np.random.Generator, rows: int, length: int, vocabulary: int, sentences: int = 3
) -> Tokens:
    """Rows of `sentences` packed sentences of random lengths, then padding."""
    segments = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        start = 0
        for segment in range(1, sentences + 1):
            size = int(rng.integers(1, length // sentences + 1))
            segments[row, start : start + size] = segment
            positions[row, start : start + size] = np.arange(size)
            start += size
    ids = np.where(segments > 0, rng.integers(1, vocabulary, (rows, length)), 0).astype(np.int32)
    return Tokens(ids, segments, positions)


def random_batch(
    seed: int, rows: int = 4, source_length: int = 17, target_length: int = 13, vocabulary: int = 96
) -> Batch:
    """A packed batch of random tokens."""
    rng = np.random.default_rng(seed)
    batch = Batch(
        random_tokens(rng, rows, source_length, vocabulary),
        random_tokens(rng, rows, target_length, vocabulary),
        np.arange(rows, dtype=np.int32),
    )
    return jax.tree.map(jnp.asarray, batch)
