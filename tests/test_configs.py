# SPDX-License-Identifier: Apache-2.0
"""The files of configs/: each resolves, each has a smoke run, and base and big run at full size."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import random_batch
from transformer_jax.config import Config, ConfigError, default_config, resolve
from transformer_jax.run import run_training
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import initial_state, make_train_step

NAMES = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem[0] != "_"
)


def get_config(name: str, variant: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_valid_and_survives_its_json(name):
    run = resolve(get_config(name))
    assert Config.from_json(run.to_json()) == run
    assert json.loads(run.to_json())["model"]["vocab_size"] == run.data.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_run_downloads_nothing(name):
    data = resolve(get_config(name, "tiny")).data
    assert (data.source, data.splits["test"]) == ("phrasebook", "test")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_a_smoke_run(name, tmp_path):
    config = get_config(name, "tiny")
    summary = run_training(resolve(config), tmp_path / "run")
    assert summary.step == config.train.num_steps
    assert summary.scores["sentences"] == 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "big"])
def test_one_step_at_full_size(name):
    """The paper's sizes and vocabulary; only the batch is smaller than the paper's.

    Weights and moments are sharded, because eight copies of big's would be 21 GB.
    """
    run = resolve(get_config(name))
    mesh = make_mesh(dataclasses.replace(run.mesh, data=1, fsdp=8))
    batch = random_batch(0, rows=8, source_length=64, target_length=64, vocabulary=37_000)
    state, sums = make_train_step(run, mesh)(initial_state(run, mesh), batch)
    assert int(state.step) == 1
    # An untrained model is about as unsure as a uniform guess over the vocabulary.
    assert abs(float(sums.loss / sums.tokens) - np.log(37_000)) < 1.5


def changed(field: str, value):
    config = default_config()
    config.data.path = "{split}.{lang}"
    section, name = field.split(".")
    config[section][name] = value
    return config


@pytest.mark.parametrize(
    "field, value",
    [
        ("model.dropout", 1.0),
        ("model.num_heads", 0),
        ("model.norm_position", "sandwich"),
        ("model.dtype", "float8"),
        ("data.target_lang", "en"),
        ("data.vocab_type", "word"),
        ("data.path", ""),
        ("data.splits", {"train": "train", "val": "val"}),
        ("optimizer.peak_rate", float("inf")),
        ("decode.alpha", float("nan")),
        ("optimizer.warmup_steps", 0),
        ("train.seed", -1),
        ("train.label_smoothing", 1.0),
        ("train.on_bad_step", "ignore"),
        ("train.param_dtype", "float16"),
        ("decode.beam_size", 0),
        ("mesh.tensor", 0),
    ],
)
def test_a_wrong_value_is_named_in_one_line(field, value):
    with pytest.raises(ConfigError) as error:
        resolve(changed(field, value))
    message = str(error.value)
    assert message.startswith(f"config.{field}={value!r}")
    assert "\n" not in message


def test_unknown_and_missing_fields_are_named():
    values = default_config().to_dict()
    values["model"]["num_layer"] = 3
    with pytest.raises(ConfigError, match=r"config\.model\.num_layer .* did you mean model\.num_l"):
        resolve(values)
    values = default_config().to_dict()
    del values["train"]["seed"]
    with pytest.raises(ConfigError, match=r"config\.train\.seed is missing"):
        resolve(values)


def test_the_models_vocabulary_follows_the_datas():
    config = changed("data.vocab_size", 1234)
    assert resolve(config).model.vocab_size == 1234


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match=":huge does not exist"):
        get_config("base", "huge")
