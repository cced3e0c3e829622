# SPDX-License-Identifier: Apache-2.0
"""Text of any length through a function, in chunks, so that memory does not grow with it."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformer_jax.errors import UserError, tell
from transformer_jax.files import is_stream, open_stream
from transformer_jax.inference.encoding import Counts
from transformer_jax.inference.lines import Lines, count_lines
from transformer_jax.inference.resumable import ResumableFile
from transformer_jax.progress import Bar

CHUNK_LINES = 8_192  # enough to sort by length and fill batches
CHUNK_BYTES = 8 << 20  # fewer lines where they are long

Progress = Callable[[int], Any]  # is told when a number of lines is done
# (number of the first line, lines of each input, what to add to, whom to tell) -> text
Work = Callable[[int, list[list[str]], Counts, Progress], str]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a stream did."""

    counts: Counts  # of all lines
    before: int  # how many of them an earlier process did
    seconds: float

    def summary(self, max_length: int) -> str:
        """One line for people; sentences are cut to `max_length` tokens."""
        counts = self.counts
        here = counts.lines - self.before
        return (
            f"{counts.lines} lines: {counts.empty} empty, "
            + (f"{counts.lost} with text that came out empty, " if counts.lost else "")
            + f"{counts.cut} cut to {max_length} tokens, "
            + f"{counts.unknown} with characters that are not in the vocabulary; "
            + (f"{self.before} of them by an earlier process; " if self.before else "")
            + f"{self.seconds:.1f} s, {here / max(self.seconds, 1e-9):.1f} lines a second"
        )


def stream(
    inputs: Sequence[Lines],
    work: Work,
    *,
    output: str | Path | None = None,
    settings: Callable[[], dict[str, Any]] = dict,
    total: int | None = None,
    chunk_lines: int = CHUNK_LINES,
) -> Report:
    """Read chunk after chunk and write what `work` makes of each, in order.

    A chunk is the same whatever happened before, so that a text that is finished by a second process
    is the text that one alone would have written.

    Args:
      inputs: one file, or several with as many lines.
      work: makes text of a chunk.
      output: a file, see `ResumableFile`, or what `is_stream`; None: stdout.
      settings: tells all that the output depends on besides the inputs' lines, if there is a file.
      total: lines, for the progress bar, which is not shown on a terminal that gets the output.
      chunk_lines: in a chunk, at most.

    Raises:
      UserError: an input cannot be read or has fewer lines than another, the output cannot be written,
        or what an earlier process wrote of it was made of other lines or with other settings.
    """
    counts, start = Counts(), time.perf_counter()
    with contextlib.ExitStack() as stack:
        file = None
        if output and not is_stream(Path(output)):
            made_by = settings() | {"inputs": len(inputs), "chunk_lines": chunk_lines}
            file = stack.enter_context(ResumableFile(output, made_by))
        else:
            write = stack.enter_context(open_stream(Path(output) if output else None))
        before = _skip(inputs, file.done, counts) if file and file.done else 0
        if before:
            tell(f"going on with line {before + 1} of {inputs[0].name}")
        shown = bool(output) or not sys.stdout.isatty()
        bar = stack.enter_context(Bar(total, "lines", done=before, shown=shown))
        while True:
            first = inputs[0].taken
            columns = _next(inputs, chunk_lines)
            if not columns[0]:
                break
            part = work(first, columns, counts, bar.update).encode()
            if file:
                file.append(part, _done(inputs, counts))
            else:
                write(part)
        if file:
            file.finish()
    return Report(counts, before, time.perf_counter() - start)


def count_all(files: Sequence[str | None]) -> int | None:
    """How many lines each file has; None if one of them is not there to be read twice.

    Raises:
      UserError: a file cannot be read or is not UTF-8, or they have different numbers of lines.
    """
    if not all(name and Path(name).is_file() for name in files):
        return None
    counted = {name: count_lines(name) for name in files if name}
    if len(set(counted.values())) > 1:
        told = " and ".join(f"{name} has {number}" for name, number in counted.items())
        raise UserError(f"{told} lines; line n of one belongs to line n of the other")
    return next(iter(counted.values()))


def _next(inputs: Sequence[Lines], chunk_lines: int) -> list[list[str]]:
    """As many lines of each input."""
    first, *others = inputs
    columns = [first.take(chunk_lines, CHUNK_BYTES)]
    wanted = len(columns[0])
    for other in others:
        # At the end there must be none.
        columns.append(other.take(max(1, wanted)))
        if len(columns[-1]) != wanted:
            shorter, longer = (other, first) if wanted else (first, other)
            raise UserError(
                f"{shorter.name} ends after line {shorter.taken} and {longer.name} does not; line n "
                "of one belongs to line n of the other"
            )
    return columns


def _skip(inputs: Sequence[Lines], done: dict[str, Any], counts: Counts) -> int:
    """Read over the lines that are done; returns their number, and adds to `counts`."""
    for lines in inputs:
        while lines.taken < done["lines"] and lines.take(
            min(CHUNK_LINES, done["lines"] - lines.taken)
        ):
            pass
    if [lines.digest for lines in inputs] != done["sha256"]:
        names = " and ".join(str(lines.name) for lines in inputs)
        raise UserError(
            f"the first {done['lines']} lines of {names} are not those that the unfinished output was "
            "made of; give that text again, or delete the .partial files to begin anew"
        )
    for name, value in done["counts"].items():
        setattr(counts, name, getattr(counts, name) + value)
    return done["lines"]


def _done(inputs: Sequence[Lines], counts: Counts) -> dict[str, Any]:
    return {
        "lines": inputs[0].taken,
        "sha256": [lines.digest for lines in inputs],
        "counts": dataclasses.asdict(counts),
    }
