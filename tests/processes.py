# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own: one, or two that train together, on virtual devices."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from transformer_jax.checkpoints import load_params

ROOT = Path(__file__).parents[1]


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


def launch(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *flags: str,
    processes: int = 1,
    devices: int = 8,
    own_flags: Sequence[Sequence[str]] = ((), ()),
) -> list[subprocess.Popen]:
    """Start the processes of a run; `devices` is how many they have together.

    `own_flags`: what each process gets besides the common flags.
    """
    if processes > 1:
        flags += f"--coordinator=localhost:{free_port()}", f"--num_processes={processes}"
    running = []
    for number in range(processes):
        own = [*own_flags[number], *([f"--process_id={number}"] if processes > 1 else [])]
        running.append(
            subprocess.Popen(
                command(config, workdir, *flags, *own),
                env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices // processes)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finish(running: Sequence[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str]]:
    """Wait for all; each one's exit code and stderr."""
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in running]
    finally:  # of a test that fails
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, errors, strict=True)]


def run(*arguments: Any, timeout: float = 300, **options: Any) -> list[str]:
    """Let a run go to its end; the stderr of its processes."""
    ended = finish(launch(*arguments, **options), timeout)
    assert [code for code, _ in ended] == [0] * len(ended), ended
    return [text for _, text in ended]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def difference(first: Path, second: Path) -> float:
    """The largest difference of two runs' last weights."""
    weights = [jax.tree.leaves(load_params(workdir)[1]) for workdir in (first, second)]
    return max(
        float(np.abs(np.asarray(one) - two).max()) for one, two in zip(*weights, strict=True)
    )
