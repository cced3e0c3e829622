# SPDX-License-Identifier: Apache-2.0
"""Whole runs in a run folder: what it holds, how it goes on, and how it fails."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import sacrebleu
from tensorboardX.proto import event_pb2

from tests.processes import ROOT, command, environment
from tests.small_runs import tiny, write_corpus
from transformer_jax.checkpoints import load_config, load_params, saved_steps
from transformer_jax.config import resolve
from transformer_jax.errors import UserError
from transformer_jax.files import alone_in
from transformer_jax.inference.translator import Translator
from transformer_jax.run import _signals, check_same, describe, run_training, settled

# Nothing to evaluate: neither a search nor a likelihood has to be compiled.
ONLY_TRAINING = {"train": "train", "validation": "", "test": ""}


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


def test_a_finished_run_goes_on_with_more_steps_and_drops_lost_lines(finished, tmp_path):
    config, summary = finished
    workdir = tmp_path / "run"
    shutil.copytree(summary.workdir, workdir)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/loss": 1.0}\n{"step": 8, "trai')
    more = config.copy_and_resolve_references()
    more.train.num_steps = 8
    more.model.attention_implementation = (
        "xla"  # of what may change, since nothing is learned from it
    )
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
    workdir = finished[1].workdir
    with pytest.raises(UserError, match=rf"made with config\.{field}="):
        check_same(load_config(workdir), resolve(config), workdir)


def test_a_run_goes_on_where_its_data_moved_and_the_run_that_it_started_from(finished, tmp_path):
    """Outside the main thread, as a server or a notebook's worker may train."""
    config = finished[0].copy_and_resolve_references()
    config.data.splits = ONLY_TRAINING
    config.data.path = write_corpus(tmp_path / "corpus")
    config.train.update(init_from=str(tmp_path / "first"), num_steps=2)
    shutil.copytree(finished[1].workdir, tmp_path / "first")
    worker = threading.Thread(target=run_training, args=(resolve(config), tmp_path / "run"))
    worker.start()
    worker.join()
    assert saved_steps(tmp_path / "run") == [2]
    (tmp_path / "first").rename(tmp_path / "moved")
    config.train.num_steps = 3
    assert run_training(resolve(config), tmp_path / "run").step == 3
    config.train.update(init_from=str(tmp_path / "moved"), num_steps=4)
    (tmp_path / "corpus").rename(tmp_path / "elsewhere")
    config.data.path = str(tmp_path / "elsewhere" / "{split}.{lang}")
    assert run_training(resolve(config), tmp_path / "run").step == 4
    assert load_config(tmp_path / "run").data.path == config.data.path
    config.data.path = write_corpus(tmp_path / "other", sizes=(300, 40, 30))
    with pytest.raises(UserError, match=r"config\.data\.path='.*' leads to another text of train"):
        run_training(resolve(config), tmp_path / "run")
    assert load_config(tmp_path / "run").data.path != config.data.path
    other = load_config(tmp_path / "moved").to_json().replace('"d_ff": 16', '"d_ff": 17')
    (tmp_path / "moved" / "config.json").write_text(other)
    with pytest.raises(UserError, match=r"made with config\.model\.d_ff=16, this config has 17"):
        run_training(resolve(config), tmp_path / "run")


def test_a_run_keeps_what_its_vocabulary_was_learned_with(finished, tmp_path, caplog):
    """The same command goes on, though a config's default or configs/base.py is another one now."""
    workdir = shutil.copytree(finished[1].workdir, tmp_path / "run")
    written = json.loads((workdir / "config.json").read_text())
    del written["data"]["normalization"]  # an earlier version's
    (workdir / "config.json").write_text(json.dumps(written))
    config = finished[0].copy_and_resolve_references()
    config.data.byte_fallback = True
    data = settled(resolve(config), workdir).data
    assert (data.normalization, data.byte_fallback) == ("identity", False)
    assert "config.data.byte_fallback stays False in" in caplog.text
    assert settled(resolve(config), tmp_path / "new").data == resolve(config).data


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_ends_a_run_as_sigterm_does_but_not_under_nohup(nohup):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        with _signals() as caught:
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert caught == ([] if nohup else [signal.SIGHUP])


def test_a_folder_whose_checkpoints_would_be_lost_is_refused_before_anything_is_made(tmp_path):
    config = resolve(tiny("nowhere/{split}.{lang}"))
    with pytest.raises(
        UserError, match=r"folder's name has brackets, as 'exp\[lr=5e-4\]' has; use"
    ):
        run_training(config, tmp_path / "exp[lr=5e-4]" / "run")
    assert not list(tmp_path.iterdir())


def test_a_mistake_before_the_first_checkpoint_can_be_mended(tmp_path):
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.data.vocab_size = 30_000
    with pytest.raises(UserError, match="vocab_size=30000 cannot be trained"):
        run_training(resolve(config), tmp_path / "run")
    config.data.vocab_size = 60
    config.data.splits = ONLY_TRAINING
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


@pytest.mark.slow  # tests/test_torture.py kills with both, too
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, sent):
    """kill -9, SIGTERM or SIGHUP in the middle, then the same command: the undisturbed run's weights."""
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.train.num_steps = 40
    config.train.eval_every = 100
    undisturbed = subprocess.run(
        command(config, tmp_path / "whole"),
        env=environment()
        | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": ""},
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
    assert victim.returncode == (-9 if sent == signal.SIGKILL else 128 + sent)
    if sent != signal.SIGKILL:
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
        ("--config.model.heads=4", "", "heads"),
        (
            "--config=nowhere.py",
            "",
            "nowhere.py is no file; there are configs/base.py, big.py, demo.py",
        ),
        ("--config=README.md", "", "--config cannot be loaded: SyntaxError"),
        ("--config.data.path=nowhere/{split}.{lang}", "", "nowhere/train.en does not exist"),
        ("--config.data.vocab_size=30000", "", "config.data.vocab_size=30000"),
        ("", "a line too few", "has 400 lines and"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (
                ("--config.train.num_steps=many", "", "num_steps"),
                ("--config.decode.alpha=nan", "", "config.decode.alpha=nan is not allowed"),
                ("--config=configs/base.py:huge", "", "variant :huge does not exist; there is"),
                ("--config.data.source=wmt99", "", "wmt99"),
                ("--config.mesh.tensor=3", "", "config.mesh"),
                ("", "not UTF-8", "train.de, line 1, is not UTF-8 (byte 5"),
                ("", "empty", "train.en is empty"),
            )
        ),
    ],
)
def test_wrong_values_end_in_one_line_and_exit_code_2(tmp_path, flag, how, message):
    config = tiny(write_corpus(tmp_path / "corpus"))
    spoil(tmp_path / "corpus", how)
    flags = command(config, tmp_path / "run", *filter(None, [flag]))
    if flag.startswith("--config="):  # instead of the other
        flags.remove(next(other for other in flags if other.startswith("--config=")))
    result = subprocess.run(
        flags,
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
    assert all(note.startswith(("devices: ", "learning a vocabulary of ")) for note in notes)


def test_without_a_workdir_the_run_lies_in_runs_under_the_configs_name(tmp_path):
    config = tiny("nowhere/{split}.{lang}")  # ends the run as soon as the folder is made
    *arguments, workdir = command(config, tmp_path / "unused")
    assert workdir.startswith("--workdir=")
    subprocess.run(
        arguments,
        env=environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (tmp_path / "runs" / "config_of_test").is_dir()


def test_help_of_main_explains_the_flags():
    result = subprocess.run(
        [sys.executable, "-m", "transformer_jax.main", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert "python -m transformer_jax.main --config=configs/demo.py" in result.stdout
    assert "The run folder; by default runs/" in result.stdout


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
    config.data.splits = ONLY_TRAINING
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
    assert full.stderr.splitlines()[0] == "devices: 1 x cpu", "a fall-back to the CPU is seen"
    assert "compiling the step for batches of " in full.stderr
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
    config.data.splits = ONLY_TRAINING
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
