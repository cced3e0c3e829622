# SPDX-License-Identifier: Apache-2.0
"""Text files, one sentence a line: strictly UTF-8, and only a line feed ends a line."""

import codecs
import os
import sys
from pathlib import Path

from transformer_jax.errors import UserError
from transformer_jax.files import write_whole


def read_lines(path: str | Path | None) -> list[str]:
    """The lines of a file, or of stdin if there is no path; a carriage return at their end is no text.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    name = path or "stdin"
    try:
        content = Path(path).read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line feed
    return [_decode(line, number, name) for number, line in enumerate(lines, start=1)]


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


def _decode(line: bytes, number: int, name: str | Path) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}, line {number}, is not UTF-8 (byte {error.start + 1}: "
            f"0x{line[error.start]:02x}); convert it, for example with iconv"
        ) from None
