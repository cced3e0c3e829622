# SPDX-License-Identifier: Apache-2.0
"""Files: written as a whole or not at all, even if the process dies meanwhile; read as strict UTF-8."""

import codecs
import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from transformer_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# What file systems without locks say: Lustre without `-o flock`, NFS without its lock service.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace it.

    Raises:
      UserError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def decode_line(line: bytes, number: int, name: str | Path) -> str:
    """The text of a file's line, from 1; only a line feed ends one, a form feed or U+2028 is text.

    A carriage return at its end is no text, nor is a byte order mark at the beginning of the first.

    Raises:
      UserError: it is not UTF-8.
    """
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}, line {number}, is not UTF-8 (byte {error.start + 1}: 0x{line[error.start]:02x}); "
            "convert the file, such as with iconv -f latin1 -t utf-8"
        ) from None


def lock(file: IO[Any]) -> None:
    """Until the file is closed, or the process ends, no other process locks it.

    Raises:
      BlockingIOError: another one has.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s cannot be locked here; let no other process use it", file.name)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While this context lasts, no other process gets into one for the same folder.

    Raises:
      UserError: another process is in there.
    """
    with (folder / ".lock").open("w") as file:
        try:
            lock(file)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {folder}; wait for it, or use another --workdir"
            ) from None
        yield
