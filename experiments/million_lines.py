# SPDX-License-Identifier: Apache-2.0
"""One million lines through `translate`: memory does not grow, and kill -9 in the middle loses nothing.

    python -m experiments.million_lines --workdir=runs/demo
    python -m experiments.million_lines --workdir=runs/demo --lines=100000 --kill

The text is made of the run's own test sentences, with words in other orders, numbers, and weird lines in
between. Prints the memory of the translating process after each eighth of it. With --kill the process is
killed after half of the text and started again, and what it wrote is compared with an undisturbed run.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from transformer_jax.errors import UserError, run_command

_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder of a trained model.", required=True)
_LINES = flags.DEFINE_integer("lines", 1_000_000, "Of the text.", lower_bound=8)
_KILL = flags.DEFINE_bool("kill", False, "Kill the process in the middle, start it again, compare.")
_FLAGS = flags.DEFINE_list(
    "translate_flags", ["--beam_size=1", "--max_length=16"], "For translate, separated by commas."
)
_WEIRD = ["", "😀 👍🏽", "שלום عالم", "\x00\x1b[31m\x7f", "one " * 10_000]


def text(sentences: Sequence[str], lines: int) -> Iterator[str]:
    """So many lines; one in a thousand is weird."""
    rng = random.Random(0)
    for number in range(lines):
        if number % 1000 == 999:
            yield _WEIRD[number // 1000 % len(_WEIRD)]
            continue
        words = sentences[number % len(sentences)].split()
        rng.shuffle(words)
        yield " ".join([*words, str(number)])


def translate(
    workdir: Path, source: Path, output: Path, options: Sequence[str], kill_after: int | None = None
) -> list[tuple[int, float]]:
    """Run the command; (lines that are on disk, resident MB) after each chunk.

    `kill_after`: kill it once so many lines are on disk.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "transformer_jax.translate", f"--workdir={workdir}"),
            *(f"--input={source}", f"--output={output}", *options),
        ]
    )
    journal = output.with_name(f"{output.name}.partial.json")
    memory: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(0.05)
        try:
            lines = json.loads(journal.read_text(encoding="utf-8"))["done"]["lines"]
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        resident = [row for row in status.splitlines() if row.startswith("VmRSS")]
        if resident and (not memory or memory[-1][0] != lines):
            memory.append((lines, int(resident[0].split()[1]) / 1024))
        if kill_after is not None and lines >= kill_after:
            process.kill()
    if process.wait() and kill_after is None:
        raise UserError("translate failed; its error is above")
    return memory


def main(_: Sequence[str]) -> None:
    """Make the text, translate it, tell."""
    workdir, lines = Path(_WORKDIR.value), _LINES.value
    try:
        sentences = (workdir / "data" / "test.source.txt").read_text(encoding="utf-8").split("\n")
    except OSError:
        raise UserError(
            f"{workdir} has no data/test.source.txt; give the folder of a run"
        ) from None
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "source", Path(name) / "output"
        with source.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in text([s for s in sentences if s], lines))
        start = time.perf_counter()
        memory = translate(workdir, source, output, _FLAGS.value)
        seconds = time.perf_counter() - start
        for eighth in range(1, 9):
            reached, megabytes = next(
                (entry for entry in memory if entry[0] >= lines * eighth / 8), memory[-1]
            )
            print(f"{reached:>9} lines  {megabytes:7.1f} MB")
        written = sum(1 for _ in output.open("rb"))
        print(f"{written} lines out, {seconds:.0f} s, {lines / seconds:.0f} lines a second")
        if _KILL.value:
            again = output.with_name("again")
            translate(workdir, source, again, _FLAGS.value, kill_after=lines // 2)
            if again.exists():
                raise UserError("it was finished before it could be killed; use more --lines")
            translate(workdir, source, again, _FLAGS.value)
            same = again.read_bytes() == output.read_bytes()
            print(f"killed and started again: {'the same bytes' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    run_command(main)
