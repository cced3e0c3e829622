# SPDX-License-Identifier: Apache-2.0
"""Text files, one sentence a line: strictly UTF-8, and only a line feed ends a line."""

import codecs
import collections
import hashlib
import os
import select
import sys
from pathlib import Path

from transformer_jax.errors import UserError
from transformer_jax.files import decode_line, write_whole

_BLOCK = 1 << 20  # bytes that are read at a time
_COUNTED = 10_000  # lines that are counted at a time


class Lines:
    """The lines of a file, or of stdin, a bounded part of them at a time; see `decode_line`."""

    def __init__(self, path: str | Path | None, *, patience: float | None = None):
        """Open it.

        Args:
          path: the file; None: stdin.
          patience: for how many seconds `take` waits for a further line when it has some already.
            None: until it has as many as it should.

        Raises:
          UserError: the file cannot be read.
        """
        self.name = path or "stdin"
        self.taken = 0  # lines so far
        self._patience = patience
        self._digest = hashlib.sha256()
        self._ready: collections.deque[bytes] = collections.deque()
        self._rest: list[bytes] = []  # the beginning of a line whose end was not read yet
        self._ended = False
        try:
            file = path or sys.stdin.fileno()
            self._file = open(file, "rb", buffering=0, closefd=bool(path))  # noqa: SIM115
        except OSError as error:
            raise self._unreadable(error) from None

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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
                self._read()
                continue
            line = self._ready.popleft()
            self._digest.update(line + b"\n")
            self.taken += 1
            size += len(line)
            lines.append(decode_line(line, self.taken, self.name))
        return lines

    def _more_soon(self) -> bool:
        if self._patience is None:
            return True
        if sys.platform == "win32":  # where select knows sockets alone
            return False
        return bool(select.select([self._file], [], [], self._patience)[0])

    def _read(self) -> None:
        try:
            block = self._file.read(_BLOCK)
        except OSError as error:
            raise self._unreadable(error) from None
        first, *others = block.split(b"\n")
        self._rest.append(first)
        for line in others:
            self._ready.append(b"".join(self._rest))
            self._rest = [line]
        if not block:
            self._ended = True
            last = b"".join(self._rest)
            if last.removeprefix(codecs.BOM_UTF8 if not self.taken else b""):
                self._ready.append(last)  # a line without a line feed

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.name} cannot be read: {error.strerror}")


def read_lines(path: str | Path | None) -> list[str]:
    """All lines of a file, or of stdin if there is no path; see `Lines`.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    with Lines(path) as lines:
        return lines.take(sys.maxsize)


def count_lines(path: str | Path) -> int:
    """How many lines a file has.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    with Lines(path) as lines:
        while lines.take(_COUNTED):
            pass
        return lines.taken


def write_lines(path: str | Path, lines: list[str]) -> None:
    """Write a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    write_whole(Path(path), "".join(f"{line}\n" for line in lines).encode())


def check_writable(path: str | Path) -> None:
    """Raises: UserError now, rather than after an hour's work, if there is no folder for the file."""
    path = Path(path)
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        reason = f"the folder {path.parent} is read-only"
    else:
        return
    raise UserError(f"{path} cannot be written: {reason}")
