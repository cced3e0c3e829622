# SPDX-License-Identifier: Apache-2.0
"""What the GPU benchmarks have measured so far: a file that is whole at every moment.

    {"device", "machine", "versions", "clocks", ...,
     "killed": {benchmark: {contestant: why}},
     "rows": {name: {"benchmark", "facts", "state", "results": {contestant: {kind: {...}}}}}}

A row is "not reached" until it is "running" and then "done"; or it has "failed: ..." as a whole. A
contestant's entry has "seconds" (of one call: median, min, max), or says why not in "refused".
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks import tables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from experiments.benchmarks.rows import Entry

NOT_REACHED, RUNNING, DONE = "not reached", "running", "done"


class Results:
    """The file and, beside it, its tables as Markdown."""

    def __init__(self, path: Path, data: dict[str, Any]):
        """`data` has what does not depend on the rows, such as the machine."""
        self.path = path
        self.data = {"killed": {}, "rows": {}} | data

    @classmethod
    def load(cls, path: Path) -> "Results":
        """What an earlier process, or an interrupted run, has written."""
        return cls(path, json.loads(path.read_text(encoding="utf-8")))

    def save(self) -> None:
        """Both files, each replaced as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        markdown = self.path.with_suffix(".md"), tables.report(self.data)
        for file, content in ((self.path, json.dumps(self.data, indent=1)), markdown):
            temporary = file.with_name(file.name + ".tmp")
            temporary.write_text(content + "\n", encoding="utf-8")
            temporary.replace(file)

    def plan(self, benchmark: str, rows: "Iterable[tuple[str, dict[str, Any]]]") -> None:
        """Note the rows that there should be; those that are there stay as they are."""
        for name, facts in rows:
            row = {"benchmark": benchmark, "facts": facts, "state": NOT_REACHED, "results": {}}
            self.data["rows"].setdefault(name, row)
        self.save()

    def is_open(self, name: str) -> bool:
        """Whether the row is still to be measured."""
        return self.data["rows"][name]["state"] in (NOT_REACHED, RUNNING)

    def begin(self, benchmark: str, name: str) -> None:
        """A row is taken in hand, from its start."""
        self.data["rows"][name] |= {"benchmark": benchmark, "state": RUNNING, "results": {}}
        self.save()

    def end(self, name: str) -> None:
        """A row is complete."""
        self.data["rows"][name]["state"] = DONE
        self.save()

    def note(self, name: str, entry: "Entry", found: dict[str, Any]) -> None:
        """Add to what a contestant's entry has."""
        kinds = self.data["rows"][name]["results"].setdefault(entry.contestant, {})
        kinds[entry.kind] = kinds.get(entry.kind, {}) | found

    def refuse(self, name: str, entry: "Entry", why: str) -> None:
        """A contestant does not serve this row; that is a result."""
        self.note(name, entry, {"refused": why})

    def against(self, benchmark: str, contestant: str) -> str | None:
        """Why a contestant is not tried any more, or None."""
        return self.data["killed"].get(benchmark, {}).get(contestant)

    def settle(self, contestant: str | None, why: str) -> bool:
        """The process that measured has died, or was ended, with this contestant in hand.

        The contestant is not tried again, the row is. Nobody in hand: the row is at fault. False if no
        row was running.
        """
        running = [
            (name, row) for name, row in self.data["rows"].items() if row["state"] == RUNNING
        ]
        for name, row in running:
            if contestant is None:
                row["state"] = f"failed: {why}"
            else:
                row["state"] = NOT_REACHED
                self.exclude(row["benchmark"], contestant, f"{why}, in {name}")
        self.save()
        return bool(running)

    def exclude(self, benchmark: str, contestant: str, why: str) -> None:
        """A contestant that hung or killed its process is not tried again in this benchmark."""
        self.data["killed"].setdefault(benchmark, {})[contestant] = why
