# SPDX-License-Identifier: Apache-2.0
"""What a benchmark reports: the machine, medians with their ranges, ratios round by round."""

import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax.files import write_whole

_QUIET = 0.1  # cores that other programs may use

Laps = dict[str, list[dict[str, Any]]]


def describe_machine() -> dict[str, Any]:
    """Enough to know what the figures are worth."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _commit() -> str:
    """Which version of the repository this is; "unknown" for a copy of the files alone.

    "-dirty" behind it if anything but results has changed since.
    """
    if shutil.which("git") is None:
        return "unknown"

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        return answer.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!../results")
    return f"{commit}-dirty" if changed else commit


def summary(laps: Laps) -> dict[str, Any]:
    """Speeds, ratios of the first contestant to each other one within a round, and all laps."""
    speeds = {name: [lap["tokens_per_second"] for lap in of] for name, of in laps.items()}
    first, *others = speeds
    ratios = {
        other: [ours / its for ours, its in zip(speeds[first], speeds[other], strict=True)]
        for other in others
    }
    return {
        "tokens_per_second": {name: spread(values) for name, values in speeds.items()},
        f"{first} over": {name: spread(values) for name, values in ratios.items()},
        "laps": laps,
    }


def save(
    path: Path,
    key: str,
    result: dict[str, Any],
    *,
    title: str,
    table: Callable[[str, dict[str, Any]], str],
) -> None:
    """Put the figures beside those of other keys, as JSON and, beside it, their tables as Markdown."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[key] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = [table(key, result) for key, result in results.items()]
    write_whole(path, f"{json.dumps(results, indent=1)}\n".encode())
    markdown = "\n\n".join([f"# {title}", *tables])
    write_whole(path.with_suffix(".md"), f"{markdown}\n".encode())


def spread(values: list[float]) -> dict[str, float]:
    """The median, and how far the values go."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(model: str, result: dict[str, Any]) -> str:
    """The summary as Markdown."""
    laps = result["laps"]
    first = next(iter(laps))
    machine, versions = result["machine"], result["versions"]
    rows = [
        f"`{result['command']}`",
        "",
        f"{model}, {machine['cores']} cores of {machine['cpu']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", commit {machine['commit']}, {machine['date'][:10]}; medians (min to max) of "
        f"{len(laps[first])} rounds",
        "",
        f"| | real tokens/s | speed of {first} over its | real positions | tokens a step | memory, GB "
        "| cores used | loss, first to last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of in laps.items():
        speed = result["tokens_per_second"][name]
        ratio = result[f"{first} over"].get(name)
        tokens, steps = (sum(lap[key] for lap in of) for key in ("tokens", "steps"))
        rows.append(
            f"| {name} | {speed['median']:,.0f} ({speed['min']:,.0f} to {speed['max']:,.0f}) | "
            + (f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else "")
            + f" | {statistics.mean(lap['real_positions'] for lap in of):.1%} | {tokens / steps:,.0f} "
            f"| {of[-1]['peak_memory_gb']:.1f} "
            f"| {statistics.median(lap['cores_used'] for lap in of):.2f} "
            f"| {of[0]['loss']:.2f} to {of[-1]['loss']:.2f} |"
        )
    waiting = max(lap["cores_used_by_waiting"] for of in laps.values() for lap in of)
    others = statistics.median(lap["cores_used_by_others"] for of in laps.values() for lap in of)
    noise = f"Waiting contestants used at most {waiting:.3f} cores, other programs {others:.2f}"
    verdict = (
        ": a quiet machine." if others < _QUIET else ": TOO NOISY, these figures do not count."
    )
    return "\n".join([*rows, "", noise + verdict])
