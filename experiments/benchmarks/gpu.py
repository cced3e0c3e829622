# SPDX-License-Identifier: Apache-2.0
"""All GPU benchmarks in one command, within a time budget.

    make bench-gpu
    python -m experiments.benchmarks.gpu --seconds=500
    JAX_PLATFORMS=cpu python -m experiments.benchmarks.gpu --smoke --output=runs/smoke

Writes OUTPUT/gpu_DEVICE.json after every row, and its tables as Markdown. Interrupted, it goes on with
--resume. This process computes nothing: it starts `rows.py`, listens to what is in hand there, and ends
it when there is silence for too long; then another goes on without the contestant that was in hand.
"""

import importlib.metadata
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks.report import describe_machine
from experiments.benchmarks.results import Results
from transformer_jax import errors

# Which part of the time that is left a benchmark may take; what it leaves is the next one's.
SHARES = {"ceilings": 0.06, "step": 0.45, "loss": 0.25, "attention": 1.0}

_SECONDS = flags.DEFINE_float("seconds", 500.0, "Time for everything.", lower_bound=1.0)
_BENCHMARKS = flags.DEFINE_list("benchmarks", list(SHARES), "Which, in this order.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Tiny sizes, one round: does everything run?")
_RESUME = flags.DEFINE_bool("resume", False, "Keep the rows that an interrupted run has measured.")
_OUTPUT = flags.DEFINE_string("output", "experiments/results", "The folder of the results.")

_ROOT = Path(__file__).parents[2]
_SAMPLE = 10.0  # seconds between looks at the card while it computes
_START = 90.0  # seconds that a process may need until it speaks
_GRACE = 25.0  # seconds after all time is up in which a process may end its row
# JAX and PyTorch share the card, in one process.
_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "tokamax")
_CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


def main(_: Sequence[str]) -> None:
    """Run what is asked for, print the tables."""
    unknown = sorted(set(_BENCHMARKS.value) - set(SHARES))
    if unknown:
        raise errors.UserError(f"--benchmarks: {unknown[0]!r} is not one of {', '.join(SHARES)}")
    results = _open()
    results.data["clocks"] = {"before": [clocks()]}
    results.save()
    deadline = time.monotonic() + _SECONDS.value
    for benchmark in _BENCHMARKS.value:
        share = SHARES[benchmark] if benchmark != _BENCHMARKS.value[-1] else 1.0
        end = time.monotonic() + share * (deadline - time.monotonic())
        results = run_benchmark(
            results, f"experiments.benchmarks.{benchmark}", end, deadline + _GRACE
        )
        results.save()
    results.data["clocks"]["after"] = [clocks()]
    results.save()
    print(results.path.with_suffix(".md").read_text(encoding="utf-8"))


def _open() -> Results:
    """The results' file, new or as it was left."""
    device = _nvidia_smi("name,driver_version")
    if not device and not _SMOKE.value:
        raise errors.UserError(
            "nvidia-smi shows no GPU; --smoke tries the benchmarks at tiny sizes on a CPU"
        )
    name = device[0] if device else "CPU"
    path = Path(_OUTPUT.value) / f"gpu_{slug(name)}.json"
    about = {
        "device": name,
        "driver": device[1] if device else None,
        "smoke": _SMOKE.value,
        "command": shlex.join(["python", "-m", "experiments.benchmarks.gpu", *sys.argv[1:]]),
        "machine": describe_machine(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    if not _RESUME.value or not path.exists():
        return Results(path, about)
    results = Results.load(path)
    for what, ours in (("smoke", about["smoke"]), ("versions", about["versions"])):
        if results.data[what] != ours:
            raise errors.UserError(f"--resume: {path} has another {what}; start without --resume")
    return results


def run_benchmark(results: Results, module: str, end: float, last: float) -> Results:
    """The rows of a benchmark's module, in as many processes as have to be started.

    No row is begun after `end`; what is unfinished at `last` is lost (both of time.monotonic).
    """
    while time.monotonic() < end:
        samples: list[dict[str, str]] = []
        in_hand, why = _run_process(results.path, module, end, last, samples)
        results = Results.load(results.path)
        during = f"during {module.split('.')[-1]}"
        results.data.setdefault("clocks", {}).setdefault(during, []).extend(samples)
        if why is None:
            break
        print(f"{module}: {why}, with {in_hand or 'nobody'} in hand", file=sys.stderr)
        if not results.settle(in_hand, why):
            results.data.setdefault("failed", {})[module] = why
            results.save()
            break  # it died outside of a row, and would again
    return results


def _run_process(
    path: Path, module: str, end: float, last: float, samples: list[dict[str, str]]
) -> tuple[str | None, str | None]:
    """(contestant in hand, why the process did not finish); both None if it did, or its time was up.

    `samples` gains what the card did meanwhile.
    """
    seconds = str(max(1.0, end - time.monotonic()))
    command = ["-m", "experiments.benchmarks.rows", module, str(path), seconds]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=_ROOT,
            env=_ENVIRONMENT | os.environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            in_hand, why = _listen(process, last, samples)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        words = [line for line in log.read().splitlines() if line.strip()][-20:]
    if why is not None:
        print("\n".join(words), file=sys.stderr)
    if why == "":
        why = "its process died: " + "".join(words[-1:])[:160].replace("|", "/")
    return in_hand, why


def _listen(
    process: subprocess.Popen, last: float, samples: list[dict[str, str]]
) -> tuple[str | None, str | None]:
    """As `_run_process`; the reason is "" if the process died by itself."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    said: dict[str, Any] = {"in_hand": None, "patience": _START}
    sampled = 0.0
    while True:
        try:
            line = lines.get(timeout=min(said["patience"], max(0.1, last - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= last:
                return None, None
            return said["in_hand"], f"no answer within {said['patience']:.0f} s"
        if line is None:
            return (None, None) if process.wait() == 0 else (said["in_hand"], "")
        try:
            said |= json.loads(line)
        except (json.JSONDecodeError, TypeError):
            continue  # a library's own words
        if said["text"].startswith("timing") and time.monotonic() > sampled + _SAMPLE:
            samples.append(clocks())
            sampled = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r\033[K{said['text'][:100]}", end="", file=sys.stderr, flush=True)


def clocks() -> dict[str, str]:
    """What the card does now, as nvidia-smi tells."""
    return dict(zip(_CLOCKS.split(","), _nvidia_smi(_CLOCKS), strict=False))


def _nvidia_smi(query: str) -> list[str]:
    """The first card's answers; none without a card."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True)
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [value.strip() for value in lines[0].split(",")] if lines else []


def slug(device: str) -> str:
    """A device's name as a part of a file's: "NVIDIA H200" -> "h200"."""
    return re.sub(r"\W+", "_", device.lower().removeprefix("nvidia ")).strip("_")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    errors.run_command(main)
