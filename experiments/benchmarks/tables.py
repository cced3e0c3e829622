# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmarks' results as Markdown; what a column means, says experiments/README.md."""

import collections
import re
from collections.abc import Iterator
from typing import Any

_HEADINGS = {
    "ceilings": "What the card can do",
    "step": "Training steps",
    "loss": "Softmax and cross-entropy",
    "attention": "Attention",
}
_PEAK = "matrix product"  # the row of ceilings.py that MFU is measured by
_NOTES = {
    "error": "error",
    "gradient_error": "gradients' error",
    "loss": "loss of the first step",
    "gigabytes": "peak memory, GB",
}


def report(data: dict[str, Any]) -> str:
    """All there is: the machine, a table for each benchmark, what refused, what is missing."""
    machine, versions = data["machine"], data["versions"]
    lines = [
        f"# GPU benchmarks, {data['device']}",
        "",
        f"`{data['command']}`, commit {machine['commit']}, {machine['date'][:10]}; driver "
        f"{data['driver']}; " + ", ".join(f"{name} {of}" for name, of in versions.items()),
    ]
    if data["smoke"]:
        lines += ["", "A smoke test at tiny sizes: NO FIGURE HERE MEANS ANYTHING."]
    lines += [f"\nNot measured: {module}, {why}" for module, why in data.get("failed", {}).items()]
    benchmarks: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for name, row in data["rows"].items():
        benchmarks[row["benchmark"]][name] = row
    for benchmark, rows in benchmarks.items():
        lines += ["", f"## {_HEADINGS.get(benchmark, benchmark)}", "", *_table(rows, _peak(data))]
        lines += _refusals(rows)
        missing = [f"{name} ({row['state']})" for name, row in rows.items() if not _is_done(row)]
        lines += ["", "Missing: " + "; ".join(missing) + "."] if missing else []
    clocks = [
        f"- {when}: " + ", ".join(f"{what} {_range(samples, what)}" for what in samples[0])
        for when, samples in data.get("clocks", {}).items()
        if samples and samples[0]
    ]
    return "\n".join([*lines, *(["", "Clocks:", "", *clocks] if clocks else [])])


def _range(samples: list[dict[str, str]], what: str) -> str:
    """From the lowest to the highest of readings such as "1980 MHz"."""
    values = sorted({sample[what] for sample in samples if what in sample}, key=_reading)
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _reading(value: str) -> float:
    number = re.match(r"[\d.]+", value)
    return float(number[0]) if number else 0.0


def _table(rows: dict[str, Any], peak: float | None) -> list[str]:
    """A line for every contestant of every row that served it."""
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in _kinds(row)))
    heads, lines = ["", ""], []
    for kind in kinds:
        heads += [title for title, _ in _columns(kind, rows, {}, {}, peak)]
    notes = [note for note in _NOTES if any(note in found for _, _, found in _entries(rows))]
    heads += [_NOTES[note] for note in notes]
    for name, row in rows.items():
        for contestant, results in row["results"].items():
            if not any("seconds" in found for found in results.values()):
                continue
            cells = [name, contestant]
            for kind in kinds:
                found = results.get(kind, {})
                cells += [cell for _, cell in _columns(kind, rows, row, found, peak)]
            merged: dict[str, Any] = {}
            for kind in kinds:
                merged |= {key: of for key, of in results.get(kind, {}).items() if key in _NOTES}
            cells += [_number(merged.get(note)) for note in notes]
            lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ["Nothing was measured."]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines]


def _columns(
    kind: str, rows: dict[str, Any], row: dict[str, Any], found: dict[str, Any], peak: float | None
) -> list[tuple[str, str]]:
    """Titles and cells of what one contestant did of one kind; with an empty row the titles alone."""
    facts = row.get("facts", {})
    seconds = found.get("seconds", {}).get("median")

    def rate(amount: float | None, unit: float) -> str:
        return _number(amount / seconds / unit) if amount and seconds else ""

    def has(fact: str) -> bool:
        return any(fact in row["facts"] for row in rows.values())

    columns = [(f"{kind}, ms", _milliseconds(found))]
    flops = facts.get("flops", {}).get(kind)
    if has("flops"):
        columns.append(("TFLOP/s", rate(flops, 1e12)))
    if has("bytes"):
        columns.append(("GB/s", rate(facts.get("bytes", {}).get(kind), 1e9)))
    if has("tokens"):
        columns.append(("tokens/s", rate(facts.get("tokens"), 1)))
        mfu = flops / seconds / peak if flops and seconds and peak else None
        columns.append(("MFU", "" if mfu is None else f"{mfu:.1%}"))
    if has("peers"):
        best = _best_peer(row, kind) if row else None
        served = best and seconds and found is not best
        ratio = best["seconds"]["median"] / seconds if best and served else None
        columns.append(("speed over best peer", "" if ratio is None else f"{ratio:.2f}"))
    return columns


def _best_peer(row: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """What the fastest of the peers did."""
    of_peers = [
        results[kind]
        for contestant, results in row["results"].items()
        if contestant in row["facts"]["peers"] and "seconds" in results.get(kind, {})
    ]
    return min(of_peers, key=lambda found: found["seconds"]["median"], default=None)


def _peak(data: dict[str, Any]) -> float | None:
    """FLOP/s of the large matrix product, if it was measured."""
    row = data["rows"].get(_PEAK, {"results": {}})
    for kinds in row["results"].values():
        for kind, found in kinds.items():
            if "seconds" in found:
                return row["facts"]["flops"][kind] / found["seconds"]["median"]
    return None


def _refusals(rows: dict[str, Any]) -> list[str]:
    """Who refused and why, each reason once, with how many rows it was the answer in."""
    counts = collections.Counter(
        (contestant, found["refused"])
        for _, contestant, found in _entries(rows)
        if "refused" in found
    )
    asked = collections.Counter(contestant for _, contestant, _ in _entries(rows))
    lines = [
        f"- {contestant}: {why} ({count} of {asked[contestant]})"
        for (contestant, why), count in counts.items()
    ]
    return ["", "Not served:", "", *lines] if lines else []


def _entries(rows: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(row, contestant, what it did) for every kind."""
    for name, row in rows.items():
        for contestant, results in row["results"].items():
            for found in results.values():
                yield name, contestant, found


def _kinds(row: dict[str, Any]) -> list[str]:
    return [kind for results in row["results"].values() for kind in results]


def _is_done(row: dict[str, Any]) -> bool:
    return row["state"] == "done"


def _milliseconds(found: dict[str, Any]) -> str:
    if "seconds" not in found:
        return ""
    median, low, high = (1e3 * found["seconds"][which] for which in ("median", "min", "max"))
    return f"{_number(median)} ({_number(low)} to {_number(high)})"


def _number(value: float | None) -> str:
    """Three figures, and thousands by their commas."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
