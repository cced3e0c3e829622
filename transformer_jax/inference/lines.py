# SPDX-License-Identifier: Apache-2.0
"""Text files, one sentence a line, a bounded part of them at a time."""

import collections
import hashlib
import sys
from pathlib import Path

from transformer_jax.files import write_whole
from transformer_jax.text_files import TextFile, decode_line


class Lines:
    """The lines of a file, or of stdin, a bounded part of them at a time; see `TextFile`."""

    def __init__(self, path: str | Path | None, *, patience: float | None = None):
        """Open it.

        Args:
          path: the file; None: stdin.
          patience: for how many seconds `take` waits for a further line when it has some already.
            None: until it has as many as it should.

        Raises:
          UserError: the file cannot be read.
        """
        self.taken = 0  # lines so far
        self._patience = patience
        self._digest = hashlib.sha256()
        self._ready: collections.deque[bytes] = collections.deque()
        self._file = TextFile(path)
        self._parts = self._file.parts()
        self._ended = False

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    @property
    def name(self) -> str | Path:
        """The file's path, or "stdin"."""
        return self._file.name

    @property
    def digest(self) -> str:
        """The SHA-256 of the lines that were taken."""
        return self._digest.hexdigest()

    def take(self, most: int, most_bytes: int = sys.maxsize) -> list[str]:
        """The next lines: `most`, fewer if they would be long; [] at the end of the text.

        Raises:
          UserError: the file cannot be read, or a line is not UTF-8.
        """
        lines: list[str] = []
        size = 0
        while len(lines) < most and size < most_bytes:
            if not self._ready:
                if self._ended or (lines and not self._more_soon()):
                    break
                part = next(self._parts, None)
                self._ended = part is None
                self._ready.extend(part or ())
                continue
            line = self._ready.popleft()
            self._digest.update(line + b"\n")
            self.taken += 1
            size += len(line)
            lines.append(decode_line(line, self.taken, self.name))
        return lines

    def _more_soon(self) -> bool:
        return self._patience is None or self._file.ready(self._patience)


def read_lines(path: str | Path | None) -> list[str]:
    """All lines of a file, or of stdin if there is no path; see `Lines`.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    with TextFile(path) as file:
        return list(file)


def count_lines(path: str | Path) -> int:
    """How many lines a file has.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    with TextFile(path) as file:
        return sum(1 for _ in file)


def write_lines(path: str | Path, lines: list[str]) -> None:
    """Write a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    write_whole(Path(path), "".join(f"{line}\n" for line in lines).encode())
