# SPDX-License-Identifier: Apache-2.0
"""A contestant in a process of its own: it works only when it is told to.

    python -m experiments.benchmarks.worker CONTESTANT FOLDER CONFIG

Each line on stdin is an amount of work, here a number of tokens; the answer is a line of JSON about a
lap that trained on at least so many. The first line of JSON says that the contestant is ready.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import psutil


@dataclasses.dataclass
class Lap:
    """What was trained on in one turn."""

    steps: int = 0
    tokens: int = 0  # real ones, source and target
    positions: int = 0  # padding too
    target_tokens: int = 0
    loss: float = 0.0  # summed over target tokens, label-smoothed

    def add(self, tokens: int, positions: int, target_tokens: int, loss: float) -> None:
        """Count one step."""
        self.steps += 1
        self.tokens += tokens
        self.positions += positions
        self.target_tokens += target_tokens
        self.loss += loss

    def figures(self, seconds: float) -> dict[str, Any]:
        """What the report tells of a lap that took so long."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / seconds,
            "real_positions": self.tokens / self.positions,
            "loss": self.loss / self.target_tokens,
        }


class Figures(Protocol):
    """A lap's result."""

    def figures(self, seconds: float) -> dict[str, Any]:
        """What the report tells of a lap that took so long; `tokens_per_second` among it."""
        ...


class Contestant(Protocol):
    """What ours.py, torch_marian.py and decoders.py offer."""

    def versions(self) -> dict[str, str]:
        """The libraries that matter."""
        ...

    def lap(self, amount: int) -> Figures:
        """Work on at least so many real tokens (or sentences); return when all of it is done."""
        ...


def make(name: str, folder: Path, config: dict[str, Any]) -> Contestant:
    """The contestant of that name; only its own libraries are imported."""
    if name.startswith("ours"):
        from experiments.benchmarks.ours import Ours

        return Ours(folder, config)
    from experiments.benchmarks.torch_marian import TorchMarian

    return TorchMarian(folder, config, compiled=name == "torch-compiled")


def timed_lap(contestant: Contestant, amount: int) -> dict[str, Any]:
    """A lap, its time, and how much of the machine it had."""
    machine, start, cpu = _machine_seconds(), time.perf_counter(), time.process_time()
    lap = contestant.lap(amount)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return lap.figures(seconds) | {
        "seconds": seconds,
        "cores_used": cpu / seconds,
        "cores_used_by_others": (_machine_seconds() - machine - cpu) / seconds,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _machine_seconds() -> float:
    """What all cores have computed since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def serve(
    make: Callable[[str, Path, dict[str, Any]], Contestant], name: str, folder: str, config: str
) -> None:
    """Make the contestant and serve laps until stdin ends; `config` is the path of a JSON file."""
    answers = _reserve_stdout()
    settings = json.loads(Path(config).read_text(encoding="utf-8"))
    start = time.perf_counter()
    contestant = make(name, Path(folder), settings)
    ready = {"versions": contestant.versions(), "start_seconds": time.perf_counter() - start}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(timed_lap(contestant, int(line))), file=answers, flush=True)


def _reserve_stdout() -> TextIO:
    """Stdout for the answers alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    serve(make, *sys.argv[1:])
