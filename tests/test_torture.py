# SPDX-License-Identifier: Apache-2.0
"""Kill a run again and again, wherever it stands: it ends with the bits of one that was left alone."""

import dataclasses
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base, demo
from tests import processes
from tests.small_runs import tiny, write_corpus
from transformer_jax.checkpoints import load_params, saved_steps

EVAL_EVERY = 20
SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
MOMENTS = "step", "evaluation", "save"


@dataclasses.dataclass
class Killing:
    """One kill: what, when, and of how many processes one."""

    sent: signal.Signals
    moment: str
    processes: int


def metrics(workdir: Path, name: str) -> dict[int, float]:
    entries = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue  # a line that is being written
    return {entry["step"]: entry[name] for entry in entries if name in entry}


def wait_for(moment: str, workdir: Path, running: list[subprocess.Popen], rng) -> None:
    """Until this start of the run has saved something, and then until it is where it should be."""
    before = set(saved_steps(workdir))
    evaluated: set[int] = set()
    while all(process.poll() is None for process in running):
        saved = set(saved_steps(workdir))
        if saved - before:
            if moment == "step":
                time.sleep(rng.uniform(0, 0.3))
                return
            if moment == "save" and list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*")):
                return
            if moment == "evaluation":
                evaluated = evaluated or set(metrics(workdir, "eval/perplexity"))
                due = {step for step in saved - before if step % EVAL_EVERY == 0}
                if due - evaluated:
                    time.sleep(rng.uniform(0, 0.05))
                    return
        time.sleep(0.001)


def kill(killing: Killing, config, workdir: Path, rng) -> int:
    """Start the run, kill one of its processes, and see all of them end; the last step on disk."""
    running = processes.launch(config, workdir, processes=killing.processes, devices=2)
    wait_for(killing.moment, workdir, running, rng)
    assert all(process.poll() is None for process in running), processes.finish(running)
    rng.choice(running).send_signal(killing.sent)
    if killing.sent == signal.SIGKILL:
        time.sleep(rng.uniform(0, 0.5))
        for process in running:  # as a scheduler does, when one of a job's processes is gone
            process.kill()
    for code, errors in processes.finish(running):
        expected = -9 if killing.sent == signal.SIGKILL else 128 + killing.sent
        assert code in (expected, 75 if expected == -9 else expected), errors
    return saved_steps(workdir)[-1]


def torture(
    killings: list[Killing], num_steps: int, folder: Path, *, evaluated: bool = True
) -> None:
    rng = random.Random(0)
    config = tiny(write_corpus(folder / "corpus", sizes=(400, 12, 4)))
    config.train.num_steps = num_steps
    config.train.eval_every = EVAL_EVERY
    config.train.checkpoint_every = 5
    config.train.log_every = 1
    config.decode.extra_length = 5
    if not evaluated:
        config.data.splits = {"train": "train", "validation": "", "test": ""}
    processes.run(config, folder / "whole", devices=2, timeout=1800)
    reached = 0
    for killing in killings:
        before, reached = reached, kill(killing, config, folder / "run", rng)
        assert before < reached < num_steps, f"no kill in the middle of the run: {killing}"
    processes.run(config, folder / "run", devices=2, timeout=1800)
    whole, survived = (load_params(folder / name)[1] for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, survived)
    for name in ("eval/perplexity", "eval/bleu", "test/bleu"):
        expected = metrics(folder / "whole", name)
        assert metrics(folder / "run", name) == expected and bool(expected) == evaluated
    losses, expected = (metrics(folder / name, "train/loss") for name in ("run", "whole"))
    assert all(losses[step] == expected[step] for step in losses)


def test_a_kill_in_a_save(tmp_path):
    torture([Killing(signal.SIGKILL, "save", 1)], 40, tmp_path, evaluated=False)


@pytest.mark.slow
def test_thirty_kills_of_one_process_and_of_one_of_two(tmp_path):
    """Two devices, of one process or of two: a sum of two numbers has the same bits in both."""
    killings = [
        Killing(sent, moment, count)
        for sent in (signal.SIGKILL, *SIGNALS, signal.SIGKILL)
        for moment in MOMENTS
        for count in (1, 2)
    ]
    random.Random(1).shuffle(killings)
    assert len(killings) == 30
    torture(killings, 3000, tmp_path)


@pytest.mark.slow
def test_sigterm_saves_base_and_ends_within_30_seconds(tmp_path):
    """65 million parameters, their moments, and the steps that the device is in, of 1,024 tokens."""
    config = base.get_config()
    config.data = demo.get_config().data
    config.data.splits = {"train": "train", "validation": "", "test": ""}
    config.data.batch_tokens = 1024
    config.model.vocab_size = 37_000  # of which the phrasebook uses a thousand
    config.train.checkpoint_every = 3
    running = processes.launch(config, tmp_path / "run", devices=1)
    while not saved_steps(tmp_path / "run") and running[0].poll() is None:
        time.sleep(0.1)
    start = time.monotonic()
    running[0].send_signal(signal.SIGTERM)
    ((code, errors),) = processes.finish(running)
    assert time.monotonic() - start < 30
    assert code == 128 + signal.SIGTERM, errors
    assert f"step {saved_steps(tmp_path / 'run')[-1]} is saved" in errors
