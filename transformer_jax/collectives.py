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
_MESH = re.compile(r"replica_groups=mesh\[(?P<sizes>[^\]]*)\] ?\{(?P<axes>[^}]*)\}")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
# XLA for TPUs overlaps a collective with fusions: one starts it, each goes on with it, one ends it.
_STARTS = re.compile(r"%async-collective-start\S* = .*calls=%([\w.-]+)")
_FUSIONS = ("fused_computation", "async_collective_fusion")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """One kind of exchange among groups of so many devices."""

    kind: str
    group: int


def bytes_of_collectives(
    hlo: str, devices: int, *, only_overlapped: bool = False
) -> dict[Collective, int]:
    """The bytes of the whole arrays that each kind moves in a step, by the size of its groups.

    The array is what a device has after an all-gather, and before a reduce-scatter. What stands in a
    loop counts once; groups of one device, which send nothing, do not count. `only_overlapped`: those
    that the compiler has scheduled beside something else.
    """
    found: Counter[Collective] = Counter()
    starts, computation = set(_STARTS.findall(hlo)), ""
    for line in hlo.splitlines():
        if entered := _COMPUTATION.match(line):
            computation = entered[1]
        match = _INSTRUCTION.search(line)
        if not match or (computation.startswith(_FUSIONS) and computation not in starts):
            continue
        if only_overlapped and not match["start"] and computation not in starts:
            continue
        group = _group_size(match["rest"], devices)
        if group > 1 or match["kind"] == "collective-permute":
            found[Collective(match["kind"], group)] += _bytes_moved(match, group)
    return dict(sorted(found.items()))


def _bytes_moved(match: re.Match[str], group: int) -> int:
    size = float(_bytes(match["type"]))
    if match["kind"] == "reduce-scatter":
        size *= group
    elif match["start"] and match["kind"] == "all-gather":  # its type has the operands too
        size /= 1 + 1 / group
    elif match["start"] and match["kind"] == "collective-permute":
        size /= 2
    return round(size)


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
    if mesh := _MESH.search(rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh["sizes"]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", mesh["axes"]))
    return devices  # an empty list: all of them


def _bytes(types: str) -> int:
    total = 0
    for dtype, shape in _ARRAY.findall(types):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
        total += math.prod(int(size) for size in shape.split(",") if size) * bits // 8
    return total
