# SPDX-License-Identifier: Apache-2.0
"""A text file that is written part by part, appears whole, and goes on where a killed process stopped.

FILE.partial        the parts so far
FILE.partial.json   how many of its bytes count, of which lines of the input they were made, and how

A part counts once the second file says so, which is replaced whole after the part is on disk; what
stands behind it in the first was cut off by the end of the process, and is made again.
"""

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from transformer_jax.errors import UserError
from transformer_jax.files import followed, lock, take_place

_VERSION = 1  # of both files


class ResumableFile:
    """Use as a context manager; only `finish` makes the file appear."""

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        """Open it, or what was written of it before.

        Args:
          path: the file; a link is followed, so that the .partial stands beside what it leads to.
          settings: JSON values that say how its content is made; what was begun with others is refused.

        Raises:
          UserError: it cannot be written, another process writes it, or it was begun with other
            settings.
        """
        self.path = followed(Path(path))
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._journal = self._partial.with_name(self._partial.name + ".json")
        # As they look when they are read back.
        self._settings = json.loads(json.dumps({"version": _VERSION, **settings}))
        try:
            self._file = self._partial.open("ab")
            lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"another process writes {self._partial}; wait for it, or use another --output"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        self.done: dict[str, Any] = self._read_journal()  # what `append` was last told, or nothing

    def __enter__(self) -> "ResumableFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if not self._journal.exists():  # nothing to go on from
            self._partial.unlink(missing_ok=True)

    def append(self, part: bytes, done: dict[str, Any]) -> None:
        """Write a part; once this returns it is on disk.

        Args:
          part: what comes next in the file.
          done: JSON values that say what the file is made of now.

        Raises:
          UserError: it cannot be written; what was written before is safe.
        """
        try:
            self._file.write(part)
            self._file.flush()
            os.fsync(self._file.fileno())
            journal = {"settings": self._settings, "bytes": self._file.tell(), "done": done}
            temporary = self._journal.with_name(self._journal.name + ".tmp")
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(journal, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._journal)
        except OSError as error:
            raise self._unwritable(error) from None
        self.done = done

    def finish(self) -> None:
        """The file is complete: it gets its name.

        Raises:
          UserError: it cannot be renamed.
        """
        try:
            if sys.platform == "win32":  # where nothing renames an open file
                self._file.close()
            take_place(self._partial, self.path)
            self._journal.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _read_journal(self) -> dict[str, Any]:
        try:
            journal = json.loads(self._journal.read_text(encoding="utf-8"))
            size = journal["bytes"]
        except (OSError, ValueError, KeyError):
            journal, size = None, 0
        if journal is None or size > self._partial.stat().st_size:
            self._journal.unlink(missing_ok=True)
            self._file.truncate(0)
            return {}
        for name in sorted({*self._settings, *journal["settings"]}):
            before, now = journal["settings"].get(name), self._settings.get(name)
            if before != now:
                self._file.close()
                raise UserError(
                    f"{self._partial} was begun with {name}={before}, not {now}; give that again, or "
                    f"delete it and {self._journal.name} to begin anew"
                )
        self._file.truncate(size)
        return journal["done"]

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self._partial} cannot be written: {error.strerror}; once it can, the same command goes "
            "on from there"
        )
