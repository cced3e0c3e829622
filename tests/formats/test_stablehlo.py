# SPDX-License-Identifier: Apache-2.0
"""The exported code: any batch, the same tokens as the Translator's, without this package's model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from experiments.serving.stablehlo_translate import ExportedModel
from tests.formats.peers import sentences, write_folder
from transformer_jax.errors import UserError
from transformer_jax.formats import marian, stablehlo
from transformer_jax.inference.translator import Translator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """An imported model: a bias, another epsilon, PAD as the decoder's start, a model for each side.

    As one that was trained with a kernel that only some GPUs have.
    """
    folder = tmp_path_factory.mktemp("stablehlo")
    write_folder(folder / "theirs", start="pad", layers=1)
    marian.import_folder(folder / "theirs", folder / "run")
    config = folder / "run/config.json"
    text = config.read_text()
    auto, kernel = (f'"attention_implementation": "{of}"' for of in ("auto", "mosaic_gpu"))
    assert auto in text
    config.write_text(text.replace(auto, kernel))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(workdir) -> Path:
    # A free length is no int, which is what beartype asks for.
    jaxtyping.config.update("jaxtyping_disable", True)
    stablehlo.export_folder(workdir, workdir.parent / "exported")
    jaxtyping.config.update("jaxtyping_disable", False)
    return workdir.parent / "exported"


def test_the_example_translates_as_the_translator_does(workdir, exported):
    lines = [*sentences(5), "", "\u2603", " ".join(sentences(30))]
    expected = Translator.from_workdir(workdir).translate(lines, beam_size=1)
    model = ExportedModel(exported)
    assert model.translate(lines) == expected
    assert [model.translate([line])[0] for line in lines[:3]] == expected[:3]


def test_the_code_is_for_three_platforms_and_beams_of_any_width(exported):
    about = json.loads((exported / "model.json").read_text())
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    model = ExportedModel(exported)
    source, lengths = np.array([[5, 6, 1], [7, 1, 0]], np.int32), np.array([3, 2], np.int32)
    cross = model.encode(model.weights, source, lengths)
    for width, room in ((1, 4), (3, 9)):
        shape = (2, width, about["num_heads"], room, about["d_k"])
        cache = [tuple(np.zeros(shape, np.float32) for _ in range(2))]
        ids = np.zeros((2, width), np.int32)
        logits, cache = model.decode_step(model.weights, ids, np.int32(0), cache, cross, lengths)
        assert logits.shape == (2, width, len(model.pieces))
        assert cache[0][0].shape == shape


def test_padding_may_be_longer_than_the_table_of_positions(exported):
    model = ExportedModel(exported)
    most = json.loads((exported / "model.json").read_text())["most_positions"]
    source, lengths = np.array([[5, 6, 1]], np.int32), np.array([3], np.int32)
    padded = np.pad(source, ((0, 0), (0, most)))
    (keys, values), *_ = model.encode(model.weights, source, lengths)
    (keys_padded, values_padded), *_ = model.encode(model.weights, padded, lengths)
    np.testing.assert_allclose(keys_padded[:, :, :3], keys, atol=1e-5)
    np.testing.assert_allclose(values_padded[:, :, :3], values, atol=1e-5)
    assert np.isfinite(keys_padded).all()


def test_the_example_needs_jax_numpy_and_sentencepiece_alone(exported):
    program = (
        "import sys\n"
        "sys.path.insert(0, 'experiments/serving')\n"
        "from stablehlo_translate import ExportedModel\n"
        f"print(ExportedModel({str(exported)!r}).translate(['{sentences(1)[0]}'])[0])\n"
        "assert not {'transformer_jax', 'flax', 'attention_kernels'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ExportedModel(exported).translate(sentences(1))[0]


def test_an_unknown_platform_is_refused(workdir, tmp_path):
    with pytest.raises(UserError, match="--platforms=abacus is unknown; allowed: cpu, cuda"):
        stablehlo.export_folder(workdir, tmp_path / "out", platforms=["abacus"])
