# SPDX-License-Identifier: Apache-2.0
"""The files of configs/: each resolves, each has a smoke run, and base and big run at full size."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import attention_kernels
import numpy as np
import pytest

from tests.conftest import random_batch
from transformer_jax.config import (
    ATTENTION_IMPLEMENTATIONS,
    Config,
    ConfigError,
    DataConfig,
    DecodeConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    default_config,
    resolve,
)
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


SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "decode": DecodeConfig,
    "mesh": MeshConfig,
}


@pytest.mark.parametrize(
    "field, value",
    [
        ("model.vocab_size", 0),
        ("model.activation", "rellu"),
        ("model.positions", "rope"),
        ("model.decoder_start", "bos"),
        ("model.norm_epsilon", 0.0),
        ("model.dropout", 2.0),
        ("model.dropout", 1.0),
        ("model.num_heads", 0),
        ("model.norm_position", "sandwich"),
        ("model.dtype", "float8"),
        ("data.target_lang", "en"),
        ("data.vocab_type", "word"),
        ("data.normalization", "nfc"),
        ("data.character_coverage", 0.97),
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
def test_a_wrong_value_is_named_in_one_line_wherever_it_comes_from(field, value):
    section, name = field.split(".")
    kind = SECTIONS[section]
    for make in (
        lambda: resolve(changed(field, value)),
        lambda: kind(**{name: value}),
        lambda: dataclasses.replace(kind(), **{name: value}),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        message = str(error.value)
        assert message.startswith(f"config.{field}={value!r}")
        assert "\n" not in message


def test_a_message_says_what_is_allowed():
    with pytest.raises(ConfigError) as error:
        ModelConfig(norm_position="Pre")
    expected = "config.model.norm_position='Pre' is not allowed; it must be one of post, pre"
    assert str(error.value) == expected
    with pytest.raises(ConfigError, match=r"config\.data\.path='' names no files"):
        resolve(default_config())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ModelConfig(d_model=64.0), "model.d_model=64.0 is of type float; it must be of"),
        (lambda: ModelConfig(num_heads=True), "model.num_heads=True is of type bool"),
        (lambda: ModelConfig(dropout=False), "model.dropout=False is of type bool"),
        (lambda: ModelConfig(dropout="0.1"), "model.dropout='0.1' is of type str"),
        (lambda: ModelConfig(logits_bias=1), "model.logits_bias=1 is of type int"),
        (lambda: DataConfig(splits="train"), "data.splits='train' must map names to names"),
        (lambda: Config(decode={"alpha": 0.6}), "decode={'alpha': 0.6} is of type dict"),
    ],
)
def test_a_value_of_another_type_is_refused(make, message):
    with pytest.raises(ConfigError, match=r"^config\." + re.escape(message)):
        make()


def test_a_whole_number_is_a_number():
    assert isinstance(ModelConfig(dropout=0).dropout, float)
    assert OptimizerConfig(beta1=0) == OptimizerConfig(beta1=0.0)
    numpys = ModelConfig(d_model=np.int64(64), dropout=np.float32(0.5))
    assert (type(numpys.d_model), type(numpys.dropout)) == (int, float)
    assert numpys == ModelConfig(d_model=64, dropout=0.5)


def test_the_implementations_of_attention_are_those_of_the_kernels():
    assert ATTENTION_IMPLEMENTATIONS == attention_kernels.IMPLEMENTATIONS


def test_every_field_of_a_number_or_a_choice_has_a_rule():
    """Texts are free but for choices; the numbers here could all be nonsense, such as -1.5."""
    free = {"data.path", "data.source_lang", "data.target_lang", "data.vocab_path"}
    free |= {"train.init_from", "train.remat", "model.logits_bias", "data.byte_fallback"}
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            assert ("rule" in field.metadata) != (f"{section}.{field.name}" in free), field.name


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MeshConfig(data=-1, fsdp=-1), "config.mesh=.* more than one -1"),
        (lambda: DataConfig(target_lang="en"), "target_lang='en' is also the source language"),
        (lambda: Config(model=ModelConfig(vocab_size=99)), "vocab_size=99 .* at least .*=37000"),
        (
            lambda: Config(model=ModelConfig(positions="learned", max_length=255)),
            "config.model.max_length=255 .* at least config.data.max_length=256",
        ),
    ],
)
def test_values_that_contradict_one_another_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
    assert Config(model=ModelConfig(max_length=255)).model.positions == "sinusoidal"


def test_the_config_of_an_older_run_is_read():
    written = json.loads(resolve(get_config("demo")).to_json())
    del written["model"]["norm_epsilon"], written["train"]["on_bad_step"]
    assert Config.from_json(json.dumps(written)) == resolve(get_config("demo"))
    del written["data"]["normalization"]
    assert Config.from_json(json.dumps(written)).data.normalization == "identity", "as it was then"


def test_the_home_folder_may_be_written_as_a_shell_has_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data = DataConfig(path="~/text/{split}.{lang}", vocab_path="runs/~/vocabulary.model")
    assert data.path == "/home/me/text/{split}.{lang}"
    assert data.vocab_path == "runs/~/vocabulary.model"
    assert TrainConfig(init_from="~/runs/first").init_from == "/home/me/runs/first"


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
