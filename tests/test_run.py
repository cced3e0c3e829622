# SPDX-License-Identifier: Apache-2.0
"""Whole runs in a run folder: what it holds, how it goes on, and how it fails."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
import sacrebleu
from tensorboardX.proto import event_pb2

from tests.conftest import random_batch
from transformer_jax.checkpoints import (
    Checkpoints,
    average,
    averaged_steps,
    load_params,
    saved_steps,
)
from transformer_jax.config import default_config, resolve
from transformer_jax.errors import UserError, run_command
from transformer_jax.files import alone_in
from transformer_jax.inference.translator import Translator
from transformer_jax.run import claim, describe, run_training
from transformer_jax.training.loop import put
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import abstract_state, initial_state, make_train_step

ROOT = Path(__file__).parents[1]


def write_corpus(folder: Path, sizes=(400, 40, 30)) -> str:
    """A language whose German is its English backwards, in other letters; returns the template."""
    rng = random.Random(0)
    english = [f"{a}{b}" for a in "bdfgklm" for b in ("at", "ip", "un")]
    german = {word: word[::-1].upper() for word in english}
    folder.mkdir(exist_ok=True)
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        lines = [[rng.choice(english) for _ in range(rng.randint(2, 7))] for _ in range(size)]
        text = {
            "en": [" ".join(words) for words in lines],
            "de": [" ".join(german[word] for word in reversed(words)) for words in lines],
        }
        for language, sentences in text.items():
            path = folder / f"{split}.{language}"
            path.write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    return str(folder / "{split}.{lang}")


def tiny(template: str) -> ml_collections.ConfigDict:
    config = default_config()
    config.model.num_layers = 1
    config.model.d_model = config.model.d_ff = 16
    config.model.num_heads = 2
    config.model.d_k = config.model.d_v = 8
    config.data.path = template
    config.data.vocab_size = 60
    config.data.max_length = 32
    config.data.batch_tokens = 512
    config.train.num_steps = 6
    config.train.log_every = 2
    config.train.eval_every = 3
    config.train.checkpoint_every = 2
    config.train.keep = 2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end: its config and its summary."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny(write_corpus(folder / "corpus"))
    return config, run_training(resolve(config), folder / "run")


def test_a_run_folder_holds_all_that_the_design_says(finished):
    _, summary = finished
    workdir = summary.workdir
    assert summary.step == 6
    assert json.loads((workdir / "config.json").read_text())["model"]["d_model"] == 16
    assert (workdir / "vocabulary.model").exists()
    assert {4, 6} <= set(saved_steps(workdir))
    assert list((workdir / "tensorboard").iterdir())
    names = {path.name for path in (workdir / "translations").iterdir()}
    assert {"validation.3.txt", "validation.6.txt", "test.average.6.txt"} <= names
    assert len((workdir / "translations" / "test.average.6.txt").read_text().splitlines()) == 30
    assert "run folder" in describe(summary) and "test BLEU" in describe(summary)


def test_metrics_are_one_json_object_a_line(finished):
    lines = (finished[1].workdir / "metrics.jsonl").read_text().splitlines()
    by_name = {}
    for entry in map(json.loads, lines):
        for name in entry:
            by_name.setdefault(name, []).append(entry["step"])
    assert by_name["train/loss"] == by_name["train/tokens_per_second"] == [2, 4, 6]
    assert by_name["eval/bleu"] == by_name["eval/perplexity"] == [3, 6]
    assert by_name["test/bleu"] == [6]


def test_tensorboard_has_the_scalars_of_metrics_jsonl(finished):
    workdir = finished[1].workdir
    expected = {
        (entry["step"], name): value
        for entry in map(json.loads, (workdir / "metrics.jsonl").open())
        for name, value in entry.items()
        if name != "step"
    }
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:  # records: length, its checksum (12 bytes), the event, its checksum (4)
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            content = content[12 + size + 4 :]
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_summary_is_what_sacrebleu_says_of_the_written_translations(finished):
    config, summary = finished
    text = (summary.workdir / "translations" / "test.average.6.txt").read_text().splitlines()
    reference = Path(config.data.path.format(split="test", lang="de")).read_text().splitlines()
    expected = sacrebleu.corpus_bleu(text, [reference]).score
    assert summary.scores["bleu"] == pytest.approx(expected, abs=1e-3)
    translator = Translator.from_workdir(summary.workdir, "average")
    source = Path(config.data.path.format(split="test", lang="en")).read_text().splitlines()
    assert translator.translate(source) == text


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


def test_a_finished_run_goes_on_with_more_steps_and_drops_lost_lines(finished, tmp_path):
    config, summary = finished
    workdir = tmp_path / "run"
    shutil.copytree(summary.workdir, workdir)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/loss": 1.0}\n{"step": 8, "trai')
    more = config.copy_and_resolve_references()
    more.train.num_steps = 8
    assert run_training(resolve(more), workdir).step == 8
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert 7 not in steps
    assert steps.count(8) == 3  # training, evaluation, test
    assert sum("test/bleu" in line for line in (workdir / "metrics.jsonl").open()) == 1


@pytest.mark.parametrize("field, value", [("model.d_model", 32), ("train.seed", 1)])
def test_a_folder_of_another_config_is_refused(finished, field, value):
    config = finished[0].copy_and_resolve_references()
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=rf"made with config\.{field}="):
        claim(resolve(config), finished[1].workdir)


def test_a_mistake_before_the_first_checkpoint_can_be_mended(tmp_path):
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.data.vocab_size = 30_000
    with pytest.raises(UserError, match="vocab_size=30000 cannot be trained"):
        run_training(resolve(config), tmp_path / "run")
    config.data.vocab_size = 60
    config.train.num_steps = 2
    assert run_training(resolve(config), tmp_path / "run").step == 2
    config.data.vocab_size = 61
    with pytest.raises(UserError, match=r"made with config\.data\.vocab_size=60"):
        run_training(resolve(config), tmp_path / "run")


def test_two_processes_do_not_train_in_one_folder(finished):
    config, summary = finished
    with (
        alone_in(summary.workdir),
        pytest.raises(UserError, match="another process is training in"),
    ):
        run_training(resolve(config), summary.workdir)


def truncate(folder: Path) -> None:
    """Cut every file of a checkpoint in half, as a full disk or a dying machine might."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])


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


def command(config: ml_collections.ConfigDict, workdir: Path, *flags: str) -> list[str]:
    """The command line that trains this config."""
    path = workdir.parent / "config_of_test.py"
    path.write_text(
        "import json, ml_collections\n"
        f"def get_config(): return ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    return [
        sys.executable,
        "-m",
        "transformer_jax.main",
        f"--config={path}",
        f"--workdir={workdir}",
        *flags,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}


@pytest.mark.slow  # tests/test_torture.py kills with both, too
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, sent):
    """kill -9 and SIGTERM in the middle, then the same command: the undisturbed run's weights."""
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.train.num_steps = 40
    config.train.eval_every = 100
    undisturbed = subprocess.run(
        command(config, tmp_path / "whole"),
        env=environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "test BLEU" in undisturbed.stdout
    assert list((tmp_path / "cache" / "transformer_jax").iterdir()), "nothing compiled was kept"

    victim = subprocess.Popen(
        command(config, tmp_path / "killed"),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not saved_steps(tmp_path / "killed") and victim.poll() is None:
        time.sleep(0.005)
    victim.send_signal(sent)
    _, errors = victim.communicate()
    reached = saved_steps(tmp_path / "killed")[-1]
    assert reached < 40, "the run was over before it could be killed"
    assert victim.returncode == (-9 if sent == signal.SIGKILL else 128 + 15)
    if sent == signal.SIGTERM:
        assert f"interrupted: step {reached} is saved" in errors

    resumed = subprocess.run(
        command(config, tmp_path / "killed"),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"resuming after step {reached}" in resumed.stderr
    for one, two in zip(
        jax.tree.leaves(load_params(tmp_path / "whole")[1]),
        jax.tree.leaves(load_params(tmp_path / "killed")[1]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def spoil(corpus: Path, how: str) -> None:
    """Make the corpus of `write_corpus` unusable."""
    path = corpus / "train.de"
    if how == "a line too few":
        path.write_text(path.read_text().partition("\n")[2])
    elif how == "not UTF-8":
        path.write_bytes(b"stra\xdfe\n" + path.read_bytes().partition(b"\n")[2])
    elif how == "empty":
        for side in ("en", "de"):
            (corpus / f"train.{side}").write_text("")


@pytest.mark.parametrize(
    "flag, how, message",
    [
        ("--config.model.dropout=1.5", "", "config.model.dropout=1.5 is not allowed"),
        ("--config.train.num_steps=many", "", "num_steps"),
        ("--config.model.heads=4", "", "heads"),
        ("--config.decode.alpha=nan", "", "config.decode.alpha=nan is not allowed"),
        ("--config=nowhere.py", "", "nowhere.py cannot be read"),
        ("--config=configs/base.py:huge", "", "variant :huge does not exist; there is :tiny"),
        ("--config=README.md", "", "--config cannot be loaded: SyntaxError"),
        ("--config.data.path=nowhere/{split}.{lang}", "", "nowhere/train.en does not exist"),
        ("--config.data.vocab_size=30000", "", "config.data.vocab_size=30000"),
        ("--config.data.source=wmt99", "", "wmt99"),
        ("--config.mesh.tensor=3", "", "config.mesh"),
        ("", "a line too few", "has 400 lines and"),
        ("", "not UTF-8", "train.de line 1 is not UTF-8 (byte 5)"),
        ("", "empty", "train.en is empty"),
    ],
)
def test_wrong_values_end_in_one_line_and_exit_code_2(tmp_path, flag, how, message):
    config = tiny(write_corpus(tmp_path / "corpus"))
    spoil(tmp_path / "corpus", how)
    result = subprocess.run(
        command(config, tmp_path / "run", *filter(None, [flag])),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert not result.stdout
    *notes, last = result.stderr.strip().splitlines()
    assert last.startswith("error: ") and message in last
    assert all(note.startswith("learning a vocabulary of ") for note in notes)


def test_without_a_workdir_the_run_lies_in_runs_under_the_configs_name(tmp_path):
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.data.vocab_size = 30_000  # ends the run as soon as the folder is made
    *arguments, workdir = command(config, tmp_path / "unused")
    assert workdir.startswith("--workdir=")
    subprocess.run(
        arguments,
        env=environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (tmp_path / "runs" / "config_of_test" / "config.json").exists()


def test_help_of_main_explains_the_flags():
    result = subprocess.run(
        [sys.executable, "-m", "transformer_jax.main", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert "python -m transformer_jax.main --config=configs/demo.py" in result.stdout
    assert "The run folder; by default runs/" in result.stdout


def test_a_full_disk_is_one_line(capsys, monkeypatch):
    def main(_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr(sys, "argv", ["main"])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert (
        error == "error: runs/x/metrics.jsonl cannot be read or written: No space left on device\n"
    )


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path, small_config, monkeypatch):
    run = resolve(small_config)
    state = initial_state(run, make_mesh(run.mesh))
    with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:

        def full(*_, **__):
            raise ValueError("RESOURCE_EXHAUSTED: no space left\nand a long explanation")

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(
            UserError, match=r"could not be saved .* no space left; it needs .*; none is before it"
        ):
            checkpoints.save(state)


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


@pytest.fixture
def small_filesystem(tmp_path):
    """A filesystem of 50 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small filesystem is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_keeps_the_last_checkpoint_whole(small_filesystem, tmp_path):
    """The line names the folder and the space; once there is room the same command goes on."""
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.model.d_model = 128
    config.train.eval_every = 100
    workdir = small_filesystem / "run"

    def train(steps: int) -> subprocess.CompletedProcess:
        config.train.num_steps = steps
        return subprocess.run(
            command(config, workdir), env=environment(), cwd=ROOT, capture_output=True, text=True
        )

    assert train(2).returncode == 0
    before = load_params(workdir, "2")[1]
    filler = small_filesystem / "filler"
    free = shutil.disk_usage(small_filesystem).free
    filler.write_bytes(bytes(free - 500_000))  # room for the small files, not for a checkpoint
    full = train(6)
    last = full.stderr.strip().splitlines()[-1]
    assert full.returncode == 2, full.stderr
    assert last.startswith(f"error: a checkpoint could not be saved in {workdir}/checkpoints")
    assert "MB are free there" in last
    assert "Traceback" not in full.stderr
    assert saved_steps(workdir) == [2]
    jax.tree.map(np.testing.assert_array_equal, load_params(workdir, "2")[1], before)
    filler.unlink()
    resumed = train(6)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 2" in resumed.stderr


def test_a_bad_step_stops_the_run_before_it_is_saved_or_is_skipped_and_counted(tmp_path):
    """A learning rate that no model survives, then the same run with steps that are skipped."""
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.optimizer.warmup_steps = 1
    config.optimizer.peak_rate = 1e30
    with pytest.raises(UserError, match=r"step 2 has a loss .* --replay_step=2 .*on_bad_step=skip"):
        run_training(resolve(config), tmp_path / "run")
    assert saved_steps(tmp_path / "run") == []
    config.train.on_bad_step = "skip"
    summary = run_training(resolve(config), tmp_path / "run")
    entries = [json.loads(line) for line in (summary.workdir / "metrics.jsonl").open()]
    skipped = {
        entry["step"]: entry["train/skipped"] for entry in entries if "train/skipped" in entry
    }
    assert skipped == {2: 1, 4: 2, 6: 2}
    for leaf in jax.tree.leaves(load_params(tmp_path / "run")[1]):
        assert np.isfinite(leaf).all()
