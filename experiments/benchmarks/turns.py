# SPDX-License-Identifier: Apache-2.0
"""Contestants in processes of their own that take turns, one computing while the others wait."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

_ROOT = Path(__file__).parents[2]
Laps = dict[str, list[dict[str, Any]]]  # by contestant, what worker.py answers


class Worker:
    """A contestant's process; ready, and waiting, once this is made."""

    def __init__(
        self,
        name: str,
        folder: Path,
        config: Path,
        environment: Mapping[str, str],
        module: str = "experiments.benchmarks.worker",
    ):
        """Start it and wait until it is ready. Its stderr goes to `folder`/NAME.log."""
        self.name, self._log = name, folder / f"{name}.log"
        start = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", module, name, str(folder), str(config)),
                ],
                cwd=_ROOT,
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        ready = self._answer()
        self.start_seconds = time.perf_counter() - start  # of the process, until it could work
        self.versions: dict[str, str] = ready["versions"]

    def lap(self, amount: int) -> dict[str, Any]:
        """Let it work on so many tokens or sentences; returns when it has."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{amount}\n")
        self._process.stdin.flush()
        return self._answer()

    def cpu_seconds(self) -> float:
        """What all its threads have computed since it started."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join([f"{self.name} died; the end of {self._log}:", *tail]))
        return json.loads(line)


def take_turns(workers: Sequence[Worker], *, rounds: int, amount: int) -> Laps:
    """Every contestant's laps; a lap to warm up comes first and does not count."""
    laps: Laps = {worker.name: [] for worker in workers}
    with tqdm(total=(1 + rounds) * len(workers), unit="turn", disable=None) as progress:
        for number in range(1 + rounds):
            for worker in workers:
                others = [other for other in workers if other is not worker]
                before, start = _computed(others), time.perf_counter()
                lap = worker.lap(amount)
                busy = (_computed(others) - before) / (time.perf_counter() - start)
                if number:
                    laps[worker.name].append(lap | {"cores_used_by_waiting": busy})
                progress.set_description(f"{worker.name} {lap['tokens_per_second']:,.0f} tokens/s")
                progress.update()
                time.sleep(0.5)  # loading threads fill their buffers, spinning threads go to sleep
    return laps


def _computed(workers: Sequence[Worker]) -> float:
    return sum(worker.cpu_seconds() for worker in workers)
