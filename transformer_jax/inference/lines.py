# SPDX-License-Identifier: Apache-2.0
"""Text files, one sentence a line: strictly UTF-8, and only a line feed ends a line."""

import sys
from pathlib import Path

from transformer_jax.errors import UserError


def read_lines(path: str | Path | None) -> list[str]:
    """The lines of a file, or of stdin if there is no path.

    Raises:
      UserError: the file cannot be read, or a line is not UTF-8.
    """
    name = path or "stdin"
    try:
        content = Path(path).read_bytes() if path else sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line feed
    return [_decode(line, number, name) for number, line in enumerate(lines, start=1)]


def write_lines(path: str | Path, lines: list[str]) -> None:
    """Write a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def check_writable(path: str | Path) -> None:
    """Raises: UserError now, rather than after an hour's work, if there is no folder for the file."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"{path} cannot be written: {reason}")


def _decode(line: bytes, number: int, name: str | Path) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}, line {number}, is not UTF-8 (byte {error.start + 1}: "
            f"0x{line[error.start]:02x}); convert it, for example with iconv"
        ) from None
