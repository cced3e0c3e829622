# SPDX-License-Identifier: Apache-2.0
"""What is kept of a run: whole, of its step, and refused where it does not belong."""

import dataclasses
import errno
import glob
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

from tests.conftest import random_batch
from transformer_jax.checkpoints import (
    Checkpoints,
    average,
    averaged_steps,
    check_folder,
    load_model,
    load_params,
    saved_steps,
)
from transformer_jax.config import resolve
from transformer_jax.errors import UserError
from transformer_jax.run import run_training
from transformer_jax.training.loop import put
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import abstract_state, initial_state, make_train_step


def truncate(folder: Path) -> None:
    """Cut every file of a checkpoint in half, as a full disk or a dying machine might."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])


def test_a_checkpoint_gives_back_every_bit(tmp_path, small_config):
    run = resolve(small_config)
    mesh = make_mesh(run.mesh)
    state = initial_state(run, mesh)
    with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        restored = checkpoints.restore(abstract_state(run, mesh))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_is_of_its_step_though_training_goes_on(tmp_path, small_config):
    """The step's buffers are donated to the next one while the checkpoint is still being written."""
    run = resolve(small_config)
    mesh = make_mesh(run.mesh)
    step, state = make_train_step(run, mesh), initial_state(run, mesh)
    batch = put(random_batch(0, rows=8, vocabulary=run.model.vocab_size), mesh)
    copies = {}
    with Checkpoints(tmp_path, every=1, keep=9) as checkpoints:
        for _ in range(6):
            state, _ = step(state, batch)
            if len(copies) < 3:
                copies[int(state.step)] = jax.tree.map(np.array, state.params)
                checkpoints.save(state)
        checkpoints.wait()
    (tmp_path / "config.json").write_text(run.to_json())
    for number, expected in copies.items():
        jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, str(number))[1], expected)


def test_what_stays_is_the_last_regular_ones_the_newest_and_the_best(tmp_path, small_config):
    """Checkpoints at odd steps, of an evaluation or an interruption, do not change the average."""
    run = resolve(small_config)
    state = initial_state(run, make_mesh(run.mesh))
    scores = {2: 7.0, 3: 9.0, 5: 8.0}  # step 3, which is not regular, is the best
    lines = [json.dumps({"step": step, "eval/bleu": bleu}) for step, bleu in scores.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5, "ev']))
    for steps in ((2, 3, 4, 5, 6), (7, 8, 9)):  # the second process knows nothing of the first
        with Checkpoints(tmp_path, every=2, keep=2) as checkpoints:
            for step in steps:
                number = jax.device_put(np.int32(step), state.step.sharding)
                checkpoints.save(dataclasses.replace(state, step=number))
            checkpoints.wait()
    assert saved_steps(tmp_path) == [3, 6, 8, 9]
    (tmp_path / "config.json").write_text(run.to_json())
    assert load_params(tmp_path, "best")[0] == 3
    assert load_params(tmp_path, "latest")[0] == 9
    every_two = dataclasses.replace(run, train=dataclasses.replace(run.train, checkpoint_every=2))
    assert averaged_steps(tmp_path, every_two) == [6, 8]
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has a BLEU score"):
        load_params(tmp_path, "best")


def test_the_average_is_the_mean_of_the_last_checkpoints(finished):
    workdir = finished[1].workdir
    average(workdir, 2)
    _, mean = load_params(workdir, "average")
    weights = [load_params(workdir, str(step))[1] for step in (4, 6)]
    for ours, one, two in zip(*map(jax.tree.leaves, (mean, *weights)), strict=True):
        np.testing.assert_allclose(ours, (np.asarray(one, "d") + two) / 2, rtol=1e-6)
    with pytest.raises(UserError, match="--last=9 cannot be averaged"):
        average(workdir, 9)


def test_a_damaged_checkpoint_is_left_out_of_the_average(finished, tmp_path, caplog):
    shutil.copytree(finished[1].workdir, tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoints" / "4")
    average(tmp_path / "run", 2)
    assert "checkpoint 4 is left out" in caplog.text
    mean, six = (load_params(tmp_path / "run", which)[1] for which in ("average", "6"))
    jax.tree.map(np.testing.assert_array_equal, mean, six)
    truncate(tmp_path / "run" / "checkpoints" / "6")
    with pytest.raises(UserError, match=r"none of the last 2 checkpoints .* can be read"):
        average(tmp_path / "run", 2)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path, caplog):
    config, summary = finished
    shutil.copytree(summary.workdir, tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoints" / "6")
    run = resolve(config)
    mesh = make_mesh(run.mesh)
    with Checkpoints(tmp_path / "run", every=2, keep=2) as checkpoints:
        state = checkpoints.restore(abstract_state(run, mesh))
        assert int(state.step) == 4
        assert "checkpoint 6" in caplog.text and "damaged" in caplog.text
        assert (tmp_path / "run" / "damaged" / "6").is_dir(), "nothing is thrown away"
    shutil.copytree(tmp_path / "run" / "damaged" / "6", tmp_path / "run" / "checkpoints" / "6")
    assert load_params(tmp_path / "run", "latest")[0] == 4


def test_only_damaged_checkpoints_are_an_error(finished, tmp_path):
    config, summary = finished
    shutil.copytree(summary.workdir, tmp_path / "run")
    for step in saved_steps(tmp_path / "run"):
        truncate(tmp_path / "run" / "checkpoints" / str(step))
    run = resolve(config)
    with (
        Checkpoints(tmp_path / "run", every=2, keep=2) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint in .* can be read"),
    ):
        checkpoints.restore(abstract_state(run, make_mesh(run.mesh)))
    assert saved_steps(tmp_path / "run") == saved_steps(summary.workdir), "nothing is moved away"


def test_a_save_of_which_arrays_are_missing_is_an_error(tmp_path, small_config):
    """In such a folder Orbax forgets what it wrote, and says nothing."""
    run = resolve(small_config)
    folder = tmp_path / "run [1]"
    with Checkpoints(folder, every=1, keep=1) as checkpoints:
        checkpoints.save(initial_state(run, make_mesh(run.mesh)))
        expected = r"could not be saved .* params lacks decoder\.0\..*; none is before it"
        with pytest.raises(UserError, match=expected):
            checkpoints.wait()


@pytest.mark.parametrize("name", ["run[1", "run]", "a?", "*", "{x}", "100%", "ü #'", "[", "[]"])
def test_other_odd_names_of_folders_are_none_of_orbax_patterns(tmp_path, name):
    check_folder(tmp_path / name)
    folder = str(tmp_path / name)
    Path(folder).mkdir()
    assert folder in glob.glob(folder)  # noqa: PTH207  (what etils does)


@pytest.mark.parametrize("name", ["run[1]", "[ab]c", "p[!1]", "[[]"])
def test_names_that_are_patterns_of_others_are_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    assert str(tmp_path / name) not in glob.glob(str(tmp_path / name))  # noqa: PTH207
    for folder in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError, match="Orbax loses checkpoints where a folder's name has"):
            check_folder(folder)


def test_a_part_of_an_array_that_is_missing_is_damage_and_not_zeros(finished, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(finished[1].workdir, workdir)
    base = {"driver": "file", "path": f"{workdir}/checkpoints/6/params/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    store.write("embedding.table/0.0", None).result()
    assert load_params(workdir)[0] == 4
    assert re.search(
        r"damaged \(params has (\d) of (?!\1)\d parts of embedding.table\)", caplog.text
    )


def test_the_average_is_what_is_meant_where_none_is_said_unless_a_checkpoint_is_newer(
    finished, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished[1].workdir, workdir)
    for which, expected in (
        (None, "average.6"),
        ("latest", "6"),
        ("average", "average.6"),
        (4, "4"),
    ):
        assert load_model(workdir, which)[2] == expected
    (workdir / "average" / "6").rename(workdir / "average" / "4")  # the run went on after it
    assert load_model(workdir)[2] == "6"
    (workdir / "average" / "4").rename(workdir / "average" / "6")
    truncate(workdir / "average" / "6")
    assert load_model(workdir)[2] == "6"
    shutil.rmtree(workdir / "average")
    assert load_model(workdir)[2] == "6"


def change_about(checkpoint: Path, **values) -> None:
    path = checkpoint / "about" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("which", ["latest", "average"])
def test_a_checkpoint_that_is_not_of_its_folder_is_refused(finished, tmp_path, which):
    """By whoever reads it; the control is that it is read before."""
    config, summary = finished
    workdir = tmp_path / "run"
    shutil.copytree(summary.workdir, workdir)
    load_params(workdir, which)
    checkpoint = workdir / ("average" if which == "average" else "checkpoints") / "6"
    about = json.loads((checkpoint / "about" / "metadata").read_text())

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            load_params(workdir, which)
        if which == "latest":
            with pytest.raises(UserError, match=match):
                average(workdir, 2)
            with pytest.raises(UserError, match=match):
                run_training(resolve(config), workdir)
            assert 6 in saved_steps(workdir), "nothing is moved away"

    change_about(checkpoint, format=99)
    refused("6 has format 99, this version reads 1")
    model = about["config"] | {"model": about["config"]["model"] | {"d_model": 48}}
    change_about(checkpoint, format=1, config=model)
    refused(r"config\.model\.d_model=48, .*config\.json has 16")
    change_about(checkpoint, config=about["config"], vocabulary="0" * 64)
    refused("trained with the vocabulary 000000000000")
    shutil.rmtree(checkpoint / "about")
    refused("6 has format None")


@pytest.mark.parametrize(
    ("reason", "remedy"), [("no space left", "make room"), ("Input/output error", "mend that")]
)
def test_a_checkpoint_that_cannot_be_written_is_one_line(
    tmp_path, small_config, monkeypatch, reason, remedy
):
    run = resolve(small_config)
    state = initial_state(run, make_mesh(run.mesh))
    with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:

        def fail(*_, **__):
            raise ValueError(f"UNAVAILABLE: {reason}\nand a long explanation")

        monkeypatch.setattr(checkpoints._manager, "save", fail)
        expected = rf"could not be saved .* {reason}; it needs .*; none is before it; {remedy}, and"
        with pytest.raises(UserError, match=expected):
            checkpoints.save(state)


def test_a_disk_that_fails_the_log_first_is_told_by_the_checkpoint(tmp_path, monkeypatch):
    """On a full disk both fail, in any order; what a checkpoint needs is what a user must know."""

    def full():
        raise ValueError("RESOURCE_EXHAUSTED: no space left")

    with (
        pytest.raises(UserError, match=r"could not be saved .* no space left; it needs"),
        Checkpoints(tmp_path, every=1, keep=1) as checkpoints,
    ):
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
        monkeypatch.setattr(checkpoints._manager, "close", lambda: None)
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
