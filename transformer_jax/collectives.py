# SPDX-License-Identifier: Apache-2.0
"""What a compiled step sends between devices, read from its HLO."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\((?P<rest>.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """One kind of exchange among groups of so many devices."""

    kind: str
    group: int


def bytes_of_collectives(hlo: str, devices: int) -> dict[Collective, int]:
    """The bytes of the whole arrays that each kind moves in a step, by the size of its groups.

    The array is what a device has after an all-gather, and before a reduce-scatter. What stands in a
    loop counts once, and groups of one device, which send nothing, do not count.
    """
    found: Counter[Collective] = Counter()
    for line in hlo.splitlines():
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        kind, asynchronous = match["kind"], bool(match["start"])
        group = _group_size(match["rest"], devices)
        size = float(_bytes(match["type"]))
        if kind == "reduce-scatter":
            size *= group
        elif asynchronous and kind == "all-gather":  # its type has the operands too
            size /= 1 + 1 / group
        elif asynchronous and kind == "collective-permute":
            size /= 2
        if group > 1 or kind == "collective-permute":
            found[Collective(kind, group)] += round(size)
    return dict(sorted(found.items()))


def bytes_sent(collectives: Mapping[Collective, int]) -> float:
    """What each device sends in a step, with ring algorithms."""
    total = 0.0
    for of, size in collectives.items():
        others = (of.group - 1) / of.group
        factor = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(of.kind, others)
        total += factor * size
    return total


def _group_size(rest: str, devices: int) -> int:
    if listed := _LISTED.search(rest):
        return listed[1].count(",") + 1
    if iota := _IOTA.search(rest):
        return int(iota[1])
    return devices  # an empty list: all of them


def _bytes(types: str) -> int:
    total = 0
    for dtype, shape in _ARRAY.findall(types):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
        total += math.prod(int(size) for size in shape.split(",") if size) * bits // 8
    return total
