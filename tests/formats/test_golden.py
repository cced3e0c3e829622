# SPDX-License-Identifier: Apache-2.0
"""Beside what Hugging Face's MarianMTModel computed when make_golden.py ran: parity without PyTorch."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.formats.make_golden import FOLDER, MODELS
from tests.formats.peers import EXTRA, our_tokens
from transformer_jax.data.batch import Batch
from transformer_jax.formats import marian, safetensors
from transformer_jax.formats.marian_arrays import concatenated_places
from transformer_jax.inference.padding import pad
from transformer_jax.inference.translator import Translator


def imported(folder: Path, workdir: Path) -> Translator:
    marian.import_folder(folder, workdir)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    translator = Translator.from_workdir(workdir, mesh=mesh)
    translator.decode = dataclasses.replace(translator.decode, extra_length=EXTRA)
    return translator


@pytest.fixture(scope="module", params=MODELS)
def folder(request) -> Path:
    """A model as Hugging Face saved it, and what it computed."""
    return FOLDER / request.param


@pytest.fixture(scope="module")
def translator(folder, tmp_path_factory) -> Translator:
    return imported(folder, tmp_path_factory.mktemp(folder.name) / "run")


@pytest.fixture(scope="module")
def told(folder) -> dict:
    return json.loads((folder / "outputs.json").read_text(encoding="utf-8"))


@nnx.jit
def memory_and_logits(model, batch):
    return model.encode(batch.source), model(batch)


def assert_same_numbers(translator: Translator, folder: Path, told: dict) -> None:
    """The encoder's output and the logits, where there are words."""
    vocabulary = translator.vocabulary
    count = len(told["targets"])
    texts = vocabulary.encode(told["lines"][:count]), vocabulary.encode_targets(told["targets"])
    source, target = (pad(ids, count, max(map(len, ids))) for ids in texts)
    batch = jax.tree.map(jnp.asarray, Batch(source, target, np.arange(count, dtype=np.int32)))
    memory, logits = memory_and_logits(nnx.merge(translator.structure, translator.params), batch)
    with np.load(folder / "outputs.npz") as expected:
        for ours, name, tokens in ((memory, "memory", source), (logits, "logits", target)):
            theirs = expected[name]
            places = (
                vocabulary.marian_ids if name == "logits" else concatenated_places(theirs.shape[2])
            )
            theirs = theirs[..., places]
            real = tokens.segments > 0
            np.testing.assert_allclose(ours[real], theirs[real], atol=2e-5, rtol=0, err_msg=name)


def test_text_has_the_same_ids(translator, told):
    vocabulary = translator.vocabulary
    for ids, expected in (
        (vocabulary.encode(told["lines"]), told["ids"]),
        (vocabulary.encode_targets(told["targets"]), told["target_ids"]),
    ):
        assert [vocabulary.marian_ids[row].tolist() for row in ids] == expected


def test_the_encoder_s_output_and_the_logits_are_the_same(translator, folder, told):
    assert_same_numbers(translator, folder, told)


def test_search_finds_the_same_tokens(translator, told):
    """Beam search with one model, greedy search with the other."""
    assert len(set(map(tuple, told["tokens"]))) > 9, "too few to tell models apart"
    assert our_tokens(translator, told["lines"], told["beams"]) == told["tokens"]


def test_an_export_has_the_arrays_that_hugging_face_saved(tmp_path):
    """Of the model whose embedding Hugging Face scales, as all that we export."""
    marian.import_folder(FOLDER / "relu", tmp_path / "run")
    marian.export_folder(tmp_path / "run", tmp_path / "again")
    ours, theirs = (
        safetensors.read(folder / "model.safetensors")
        for folder in (tmp_path / "again", FOLDER / "relu")
    )
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize(
    "name",
    ["final_logits_bias", "model.decoder.layers.0.self_attn.v_proj.weight", "model.shared.weight"],
)
def test_a_difference_in_one_number_would_show(folder, told, tmp_path, name):
    shutil.copytree(folder, tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    arrays = dict(safetensors.read(path))
    arrays[name] = np.array(arrays[name])
    arrays[name].flat[7] += 0.01
    safetensors.write(path, arrays, {"format": "pt"})
    other = imported(tmp_path / "theirs", tmp_path / "run")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_numbers(other, folder, told)
