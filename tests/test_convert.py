# SPDX-License-Identifier: Apache-2.0
"""The convert command, and training from what it wrote, as a user runs them."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.formats.peers import SOURCE, TARGET, sentences, write_folder
from tests.test_commands_inference import run, the_error
from transformer_jax import checkpoints
from transformer_jax.config import default_config, resolve
from transformer_jax.errors import UserError
from transformer_jax.replay import replay
from transformer_jax.run import run_training
from transformer_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """A run folder that --from=huggingface made."""
    folder = tmp_path_factory.mktemp("convert")
    write_folder(folder / "theirs", layers=1)
    result = run(
        "convert",
        *("--from=huggingface", f"--input={folder / 'theirs'}", f"--workdir={folder / 'run'}"),
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode() == f"{folder / 'run'}\n"
    return folder / "run"


def test_what_is_imported_is_translated_and_evaluated(imported, tmp_path):
    source, reference = tmp_path / "in.txt", tmp_path / "ref.txt"
    source.write_text("\n".join(sentences(4)) + "\n")
    reference.write_text("\n".join(sentences(4, words=TARGET)) + "\n")
    result = run(
        "evaluate", f"--workdir={imported}", f"--source={source}", f"--reference={reference}"
    )
    assert result.returncode == 0, result.stderr.decode()
    assert b'"step": 0' in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir={run}"], "give either --from, with --input, or --to, with --output"),
        (["--workdir={run}", "--to=huggingface"], "--to needs --output"),
        (["--workdir={run}", "--from=huggingface", "--input=/nowhere"], "has checkpoints already"),
        (["--workdir={run}/x", "--from=huggingface", "--input=/nowhere"], "there is no /nowhere/"),
        (["--workdir=/nowhere", "--to=stablehlo", "--output=x"], "/nowhere is no run folder"),
    ],
)
def test_what_is_wrong_is_one_line(imported, flags, message):
    flags = [flag.format(run=imported) for flag in flags]
    assert message in the_error(run("convert", *flags))


@pytest.fixture
def finetuning(imported, tmp_path):
    """A config that names the imported run, and another architecture, which must not matter."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 200, (60, 5))
    for lang, words in (("eng", SOURCE), ("deu", TARGET)):
        lines = [" ".join(words[number] for number in row) for row in numbers]
        (tmp_path / f"train.{lang}").write_text("\n".join(lines) + "\n")
    config = default_config()
    config.data.path = str(tmp_path / "{split}.{lang}")
    config.data.source_lang, config.data.target_lang = "eng", "deu"
    config.data.batch_tokens = 512
    config.data.splits = {"train": "train", "validation": "", "test": ""}
    config.train.num_steps = config.train.log_every = config.train.eval_every = 2
    config.train.checkpoint_every = config.train.keep = 2
    config.train.init_from = str(imported)
    config.optimizer.warmup_steps = 1
    config.optimizer.peak_rate = 1e-3
    return config


@pytest.mark.slow  # tests/test_run.py starts a run from another
def test_a_run_starts_from_the_imported_weights_and_vocabulary(imported, finetuning, tmp_path):
    workdir = tmp_path / "tuned"
    run_training(resolve(finetuning), workdir)
    before, after = (checkpoints.load_config(folder) for folder in (imported, workdir))
    assert after.model.d_model == before.model.d_model and after.model.logits_bias
    assert after.model.dropout == finetuning.model.dropout
    names = "vocabulary.model"
    assert (workdir / names).read_bytes() == (imported / names).read_bytes()
    (_, old), (step, new) = (checkpoints.load_params(folder) for folder in (imported, workdir))
    assert step == 2
    for name in ("table", "bias"):  # two steps at 0.001: moved, and near
        distance = np.abs(np.asarray(new["embedding"][name]) - np.asarray(old["embedding"][name]))
        assert 1e-4 < distance.max() < 5e-3
    # Done is done, and the weights are not taken anew.
    assert run_training(resolve(finetuning), workdir).step == 2


def test_training_in_the_imported_folder_itself_says_what_to_do_instead(imported, finetuning):
    finetuning.train.init_from = ""
    with pytest.raises(UserError, match="use another --workdir"):
        run_training(resolve(finetuning), imported)


def test_a_folder_to_start_from_must_be_a_run(finetuning, tmp_path):
    finetuning.train.init_from = str(tmp_path)
    with pytest.raises(UserError, match="is no run folder"):
        run_training(resolve(finetuning), tmp_path / "tuned")


@pytest.mark.slow  # tests/test_dry_run.py replays, too
def test_a_step_of_such_a_run_is_replayed_from_where_it_started(finetuning, tmp_path):
    workdir = tmp_path / "tuned"
    run_training(resolve(finetuning), workdir)
    [entry] = [entry for entry in read_metrics(workdir) if "train/loss" in entry]
    replayed = [replay(resolve(finetuning), workdir, step) for step in (1, 2)]
    losses, tokens = (
        [float(re.search(pattern, text)[1]) for text in replayed]
        for pattern in (r"loss (\S+) a token", r"a token, (\d+) tokens")
    )
    assert np.average(losses, weights=tokens) == pytest.approx(entry["train/loss"], rel=1e-5)
