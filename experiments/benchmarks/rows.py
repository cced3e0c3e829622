# SPDX-License-Identifier: Apache-2.0
"""Measure one GPU benchmark's rows, each contestant in turn, in a process that may be killed.

    python -m experiments.benchmarks.rows MODULE RESULTS SECONDS

`gpu.py` starts it, and reads from its stdout what is in hand and how long that may take: a kernel
that was never on hardware may hang. Whatever was measured stands in RESULTS at every moment.
"""

import dataclasses
import gc
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.programs import Program
from experiments.benchmarks.report import spread
from experiments.benchmarks.results import Results

_ROUNDS = 5, 7  # at least, at most
_COMPILE = 150.0  # seconds, at most, for all contestants of a row


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one contestant does in one row."""

    contestant: str
    kind: str  # "forward", "forward+backward", "step": what of the row's facts it is
    make: Callable[[], Program]  # raises what there is to say against it
    check: Callable[[Any], dict[str, float]] = lambda outputs: {}  # of the first run's outputs


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the same work for all contestants."""

    name: str
    facts: dict[str, Any]  # "flops" and "bytes" by kind, "tokens": what times are divided into
    entries: Callable[[], Sequence[Entry]]  # makes the inputs, so not before the row's turn
    turn: float = 0.02  # seconds that a contestant's turn should last, at least
    patience: float = 45.0  # seconds after which a turn is not waited for


class DeviceLost(Exception):
    """After a fault the device serves this process no more; another process can go on."""


def say(text: str, contestant: str | None, patience: float) -> None:
    """Tell `gpu.py` what comes next, and for how long there may be silence."""
    print(json.dumps({"text": text, "in_hand": contestant, "patience": patience}), flush=True)


def measure(results: Results, benchmark: str, row: Row, seconds: float) -> None:
    """All contestants of a row: compiled at the same time, tried one by one, timed in turns."""
    start = time.perf_counter()
    results.begin(benchmark, row.name)
    say(row.name, None, _COMPILE)
    ready: list[tuple[Entry, Program]] = []
    for entry in row.entries():
        why = results.against(benchmark, entry.contestant)
        if why:
            results.refuse(row.name, entry, why)
            continue
        try:
            ready.append((entry, entry.make()))
        except Exception as error:  # what cannot serve says so: a result
            results.refuse(row.name, entry, first_line(error))
    ready, late = _compiled(results, row, ready, max(_COMPILE / 5, min(_COMPILE, seconds)))
    for contestant in late:
        results.exclude(benchmark, contestant, f"not compiled in time, in {row.name}")
    ready = _tried(results, row, ready)
    _take_turns(results, row, ready, start + seconds)
    results.end(row.name)


def _compiled(
    results: Results, row: Row, programs: list[tuple[Entry, Program]], seconds: float
) -> tuple[list[tuple[Entry, Program]], list[str]]:
    """Those that compile, at the same time in threads of their own; who is late, is left behind."""
    errors: dict[int, str] = {}

    def compile_one(number: int, program: Program) -> None:
        try:
            program.compile()
            errors[number] = ""
        except Exception as error:
            errors[number] = first_line(error)

    say("compiling", None, seconds + row.patience)
    threads = [
        threading.Thread(target=compile_one, args=(number, program), daemon=True)
        for number, (_, program) in enumerate(programs)
    ]
    for thread in threads:
        thread.start()
    end = time.perf_counter() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.perf_counter()))
    kept, late = [], []
    for number, (entry, program) in enumerate(programs):
        if number not in errors:
            late.append(entry.contestant)
        error = errors.get(number, f"not compiled within {seconds:.0f} s")
        if error:
            results.refuse(row.name, entry, error)
        else:
            kept.append((entry, program))
    return kept, late


def _tried(
    results: Results, row: Row, programs: list[tuple[Entry, Program]]
) -> list[tuple[Entry, Program]]:
    """Those that run; what they need and how wrong they are is noted."""

    def try_one(entry: Entry, program: Program) -> bool:
        say(f"trying {entry.contestant}", entry.contestant, row.patience)
        found = entry.check(program.first())
        results.note(row.name, entry, {"gigabytes": program.gigabytes(), **found})
        return True

    return [pair for pair in programs if _attempt(results, row, pair[0], try_one, *pair)]


def _take_turns(
    results: Results,
    row: Row,
    programs: list[tuple[Entry, Program]],
    until: float,
) -> None:
    """A B C A B C ...: what disturbs the machine is unfair to none. Seconds are of one call."""

    def turn(entry: Entry, program: Program, runs: int) -> float:
        say(f"timing {entry.contestant}", entry.contestant, row.patience)
        return program.seconds(runs) / runs / program.calls

    smoke = results.data["smoke"]
    racing = []
    for entry, program in programs:
        once = _attempt(results, row, entry, turn, entry, program, 1)
        if once is not None:
            runs = 1 if smoke else round(row.turn / max(once * program.calls, 1e-6))
            racing.append((entry, program, max(1, min(1000, runs)), []))
    least, most = (1, 1) if smoke else _ROUNDS
    for number in range(most):
        if number >= least and time.perf_counter() > until:
            break
        for entry, program, runs, seconds in list(racing):
            found = _attempt(results, row, entry, turn, entry, program, runs)
            if found is None:
                racing.remove((entry, program, runs, seconds))
            else:
                seconds.append(found)
    for entry, program, runs, seconds in racing:
        note = {"seconds": spread(seconds), "rounds": len(seconds), "calls": runs * program.calls}
        results.note(row.name, entry, note)


def _attempt(
    results: Results, row: Row, entry: Entry, function: Callable[..., Any], *arguments: Any
) -> Any:
    """What the function returns, or None: a contestant's error, memory say, is its result.

    Raises:
      DeviceLost: the device does not answer any more.
    """
    try:
        return function(*arguments)
    except Exception as error:
        results.refuse(row.name, entry, first_line(error))
    _require_device()
    return None


def _require_device() -> None:
    """Raise DeviceLost if the device does not answer after somebody's error."""
    try:
        jax.block_until_ready(jnp.ones(8) + 1)
    except Exception as error:
        raise DeviceLost(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160].replace("|", "/")


def main(module: str, path: str, seconds: str) -> None:
    """Measure the rows of a benchmark's module that are not there yet, within so many seconds."""
    benchmark = module.split(".")[-1]
    end = time.perf_counter() + float(seconds)
    results = Results.load(Path(path))
    rows: list[Row] = importlib.import_module(module).rows(results.data["smoke"])
    results.plan(benchmark, [(row.name, row.facts) for row in rows])
    left = [row for row in rows if results.is_open(row.name)]
    longest = 0.0
    for number, row in enumerate(left):
        start = time.perf_counter()
        if start + longest / 2 > end:
            break  # it would not be complete
        measure(results, benchmark, row, (end - start) / (len(left) - number))
        jax.clear_caches()
        gc.collect()
        longest = max(longest, time.perf_counter() - start)


if __name__ == "__main__":
    code = 1
    try:
        main(*sys.argv[1:])
        code = 0
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that compile without end are left behind
