# SPDX-License-Identifier: Apache-2.0
"""Files that are written: as a whole or not at all, even if the process dies meanwhile.

What a user names as an output may also be a pipe or a device, which is written to as it is, or a link,
which is followed.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from transformer_jax.errors import UserError, check_stdout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# What file systems without locks say: Lustre without `-o flock`, NFS without its lock service.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace it; see `is_stream` and `followed` for what is no file.

    Raises:
      UserError: it cannot be written; what was there before is still there.
    """
    if is_stream(path):
        with open_stream(path) as write:
            write(content)
        return
    final = followed(path)
    temporary = final.with_name(final.name + ".tmp")
    try:
        temporary.write_bytes(content)
        take_place(temporary, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from None


def check_writable(path: str | Path) -> None:
    """Raises: UserError now, rather than after an hour's work, if it is seen that this cannot be written."""
    path = Path(path)
    if is_stream(path):
        number = _descriptor(path)
        if number is not None:
            _check_descriptor(number, path)
            return
        if stat.S_ISSOCK(path.stat().st_mode):
            reason = "it is a socket"
        elif not os.access(path, os.W_OK):
            reason = "it is read-only"
        else:
            return
        raise UserError(f"{path} cannot be written: {reason}")
    folder = followed(path).parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        reason = f"the folder {folder} is read-only"
    else:
        return
    raise UserError(f"{path} cannot be written: {reason}")


def followed(path: Path) -> Path:
    """Where a file of this name is written: where a link leads to, whether or not there is a file."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def is_stream(path: Path) -> bool:
    """Whether a pipe, a device or the like stands there, which nothing must replace.

    So does a name of one of the process's own descriptors, such as /dev/stdout, whatever it leads to:
    a file there may have been opened to be appended to.

    Raises:
      UserError: links lead in a circle.
    """
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _unwritable(path, error) from None
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def open_stream(path: Path | None) -> Iterator[Callable[[bytes], None]]:
    """A function that writes at once to what `is_stream`, or to stdout where there is no path.

    Opening a named pipe waits for its reader.

    Raises:
      UserError: it cannot be written; a BrokenPipeError: its reader has gone.
    """
    name, number = path or "stdout", _descriptor(path) if path else 1
    try:
        opened = os.open(name, os.O_WRONLY) if number is None else os.dup(number)
    except OSError as error:
        raise _unwritable(name, error) from None

    def write(content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(opened, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(name, error) from None

    try:
        yield write
    finally:
        os.close(opened)


def _descriptor(path: Path) -> int | None:
    """The number of the descriptor that a path names, as /dev/stdout names 1; None of other paths."""
    own = os.path.realpath("/dev/fd")
    for _ in range(40):  # more links than the kernel follows
        if path.name.isdecimal() and os.path.realpath(path.parent) == own:
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None


def _check_descriptor(number: int, path: Path) -> None:
    """Raises: UserError, unless it is open for writing."""
    if number == 1:
        check_stdout()
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise _unwritable(path, error) from None
    if mode == os.O_RDONLY:
        raise UserError(f"{path} cannot be written: it is open for reading")


def with_home(path: str) -> str:
    """The path with the home folder for a ~ in front, or as it is for a user who has none."""
    return os.path.expanduser(path)  # noqa: PTH111  (Path's fails without a home)


def take_place(temporary: Path, final: Path) -> None:
    """Give a complete file the name of one that may be there already."""
    try:
        temporary.replace(final)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # A file that is mounted by itself, as containers do, is there to be written to.
        shutil.copyfile(temporary, final)
        temporary.unlink()


def _unwritable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written: {error.strerror}")


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
