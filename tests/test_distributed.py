# SPDX-License-Identifier: Apache-2.0
"""Two processes of four devices are one of eight: batches, losses, files, and how they end."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import processes
from tests.processes import ROOT
from tests.small_runs import tiny, write_corpus
from transformer_jax import distributed
from transformer_jax.checkpoints import saved_steps
from transformer_jax.config import resolve
from transformer_jax.data import phrasebook, pipeline


def calm(config):
    """Adam that does not blow up the noise of gradients that are zero; every step is logged."""
    config.optimizer.epsilon = 1e-5
    config.train.log_every = 1
    return config


def sentences(folder: Path):
    """A run on the phrasebook's first sentences."""
    folder.mkdir()
    for split, count in (("train", 2000), ("validation", 40), ("test", 20)):
        for language, side in zip(
            ("en", "de"), zip(*phrasebook.pairs(split)[:count], strict=True), strict=True
        ):
            text = "".join(f"{sentence}\n" for sentence in side)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    config = calm(tiny(str(folder / "{split}.{lang}")))
    config.data.vocab_size = 200
    config.data.max_length = 32
    config.data.batch_tokens = 512
    config.train.eval_every = 6
    config.decode.extra_length = 5
    return config


@pytest.fixture
def words(tmp_path):
    config = calm(tiny(write_corpus(tmp_path / "corpus")))
    config.train.eval_every = 4
    return config


def metrics(workdir: Path, name: str) -> dict[int, float]:
    entries = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def assert_same_run(one: Path, other: Path) -> None:
    """The same losses to 1e-5, and the same weights."""
    losses, others = (metrics(run, "train/loss") for run in (one, other))
    assert losses.keys() == others.keys() and len(losses) >= 6
    np.testing.assert_allclose(list(others.values()), list(losses.values()), rtol=1e-5)
    assert processes.difference(one, other) < 1e-4


def test_two_processes_train_what_one_does(tmp_path):
    """Of one device each; the next one has eight."""
    config = sentences(tmp_path / "corpus")
    processes.run(config, tmp_path / "one", devices=2)
    first, second = processes.run(config, tmp_path / "two", processes=2, devices=2)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    for name in ("eval/perplexity", "eval/bleu", "test/bleu", "train/real_positions"):
        found, expected = (metrics(tmp_path / run, name) for run in ("two", "one"))
        assert found == pytest.approx(expected, rel=1e-5), name
    names = [path.name for path in sorted((tmp_path / "one" / "translations").iterdir())]
    for name in names:
        one, two = (tmp_path / run / "translations" / name for run in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert "step 6/6" in first and "step" not in second, "the second process should be quiet"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "data=2,fsdp=2,tensor=2", "tensor=8"])
def test_two_processes_train_what_one_does_on_multi30k(multi30k, tmp_path, mesh):
    config = calm(tiny(str(multi30k / "{split}.{lang}")))
    config.data.splits = {"train": "train", "validation": "val", "test": ""}
    config.data.vocab_size = 2000
    config.data.batch_tokens = 2048
    config.data.max_length = 64
    config.train.num_steps = 20
    config.train.eval_every = 20
    flags = [f"--config.mesh.{axis}" for axis in mesh.split(",")]
    processes.run(config, tmp_path / "one", devices=1)
    processes.run(config, tmp_path / "two", "--config.mesh.data=-1", *flags, processes=2)
    assert_same_run(tmp_path / "one", tmp_path / "two")


# What one process of several has of the first batches, gathered from all.
_GATHER = """
import hashlib, itertools, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from transformer_jax import distributed
from transformer_jax.config import Config
from transformer_jax.data import phrasebook, pipeline
from transformer_jax.training.loop import put
from transformer_jax.training.sharding import batch_ways, share_of_process
workdir, count, port, number = sys.argv[1], *map(int, sys.argv[2:])
if count > 1:
    distributed.start(f"localhost:{port}", count, number)
config = Config.from_json(open(f"{workdir}/config.json").read())
dataset = pipeline.prepared(config, __import__("pathlib").Path(workdir))
mixed = np.array(jax.devices())[[0, 4, 1, 5, 6, 2, 7, 3]]
for sizes, devices in [((8, 1, 1), jax.devices()), ((2, 2, 2), jax.devices()),
                       ((1, 1, 8), jax.devices()), ((8, 1, 1), mixed), ((2, 2, 2), mixed)]:
    axes = "data", "fsdp", "tensor"
    mesh = jax.sharding.Mesh(np.array(devices).reshape(sizes), axes, axis_types=(AxisType.Auto,) * 3)
    share = share_of_process(mesh)
    batches = pipeline.training_batches(
        dataset, config, start_step=0, rows_multiple=8, share=share)
    for batch in itertools.islice(batches, 4):
        whole = multihost_utils.process_allgather(put(batch, mesh), tiled=True)
        order = np.argsort(whole.rows)
        content = b"".join(np.asarray(leaf)[order].tobytes() for leaf in jax.tree.leaves(whole))
        print("batch", hashlib.sha256(content).hexdigest())
    print("share", *share.parts, file=sys.stderr)
"""


def test_two_processes_have_the_batches_of_one_to_the_bit(words, tmp_path):
    """On meshes that split rows over processes, and not, with devices in any order."""
    run = resolve(words)
    pipeline.prepare(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(run.to_json())
    expected = [
        hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(batch))).hexdigest()
        for batch, _ in zip(
            pipeline.training_batches(
                pipeline.prepared(run, tmp_path / "run"), run, start_step=0, rows_multiple=8
            ),
            range(4),
            strict=False,
        )
    ]
    assert len(set(expected)) == 4
    port = processes.free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _GATHER, str(tmp_path / "run"), "2", str(port), str(number)],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    shares = []
    for process in running:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        found = [line.split()[1] for line in out.splitlines() if line.startswith("batch")]
        assert found == expected * 5
        shares.append([line for line in err.splitlines() if line.startswith("share")])
    assert shares[0] == ["share 0 1 2 3", "share 0 1", "share 0", "share 0 2 5 7", "share 0 1 2 3"]
    assert shares[1][3] == "share 1 3 4 6"


def test_a_mistake_that_one_process_finds_ends_both_with_its_line(words, tmp_path):
    words.data.vocab_size = 30_000
    for code, errors in processes.finish(processes.launch(words, tmp_path / "run", processes=2)):
        assert code == 2, errors
        assert errors.splitlines()[-1].startswith("error: config.data.vocab_size=30000")


@pytest.mark.slow
def test_processes_of_different_configs_are_refused(words, tmp_path):
    seeds = ["--config.train.seed=5"], ["--config.train.seed=6"]
    running = processes.launch(words, tmp_path / "run", processes=2, own_flags=seeds)
    code, errors = processes.finish(running[::-1])[0]
    assert code == 2
    assert "process 1 has another config than process 0" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    "flags",
    [["--coordinator=localhost:1"], pytest.param(["--process_id=0"], marks=pytest.mark.slow)],
)
def test_flags_that_belong_together(words, tmp_path, flags):
    ((code, errors),) = processes.finish(processes.launch(words, tmp_path / "run", *flags))
    assert code == 2
    assert "--coordinator, --num_processes and --process_id go together" in errors


def first_save(workdir: Path, running: list[subprocess.Popen]) -> None:
    while not saved_steps(workdir):
        assert all(process.poll() is None for process in running), processes.finish(running)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_any_mesh_goes_on(words, tmp_path):
    """SIGTERM to process 1 of 2; then four devices, then one with fsdp, as if nothing had been."""
    words.train.num_steps = 60
    words.train.eval_every = 100
    words.data.splits = {"train": "train", "validation": "", "test": ""}
    processes.run(words, tmp_path / "whole", devices=1)
    running = processes.launch(words, tmp_path / "run", processes=2)
    first_save(tmp_path / "run", running)
    running[1].send_signal(signal.SIGTERM)
    ended = processes.finish(running)
    reached = saved_steps(tmp_path / "run")[-1]
    assert reached < 50, "the run was over before it could be stopped"
    for code, errors in ended:
        assert code == 128 + signal.SIGTERM, errors
        assert f"interrupted: step {reached} is saved" in errors.splitlines()[-1]
    (errors,) = processes.run(
        words, tmp_path / "run", f"--config.train.num_steps={reached + 4}", devices=4
    )
    assert f"resuming after step {reached}" in errors
    processes.run(words, tmp_path / "run", "--config.mesh.fsdp=2", devices=2)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("victim, seconds", [(0, 10), (1, distributed.HEARTBEAT_SECONDS + 30)])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_when_a_process_dies_or_hangs_the_other_ends(words, tmp_path, victim, seconds, sent):
    words.train.num_steps = 10_000
    words.train.eval_every = 10_000
    running = processes.launch(words, tmp_path / "run", processes=2)
    first_save(tmp_path / "run", running)
    running[victim].send_signal(sent)
    if sent == signal.SIGSTOP:
        seconds = distributed.HEARTBEAT_SECONDS + 30
    start = time.monotonic()
    other = running[1 - victim]
    while other.poll() is None and time.monotonic() - start < seconds:
        time.sleep(0.1)
    assert other.poll() is not None, f"still there after {seconds} s"
    running[victim].kill()  # one that hangs would never end
    code, errors = processes.finish([other, running[victim]])[0]
    assert code == distributed.LOST
    assert errors.splitlines()[-1].startswith("error: ")
    assert "another" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "processes", "lost"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: the coordination service"), 2, True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), 2, True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), 1, False),
        (ValueError("UNKNOWN: no space left on device"), 2, False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 2, False),
    ],
)
def test_a_lost_process_is_not_taken_for_a_mistake(monkeypatch, error, processes, lost):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert distributed.lost_another(error) == lost


def test_a_vote_of_one_process_counts_at_once():
    vote = distributed.Vote()
    assert [vote(number) for number in (0, 15, 0)] == [0, 15, 0]
    assert vote.close(2) == 2
    assert distributed.largest(7) == 7


def test_a_vote_of_many_counts_two_calls_later(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    vote = distributed.Vote()
    assert [vote(number) for number in (0, 15, 0, 2, 0, 0)] == [0, 0, 0, 15, 0, 2]
    vote(9)
    monkeypatch.undo()
    assert vote.close(3) == 9, "what was said last is not forgotten"
