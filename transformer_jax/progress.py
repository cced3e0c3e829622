# SPDX-License-Identifier: Apache-2.0
"""How far a long piece of work is: a bar for whoever looks on, a line now and then for a log."""

import logging
import sys
import time
import warnings
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_SECONDS = 60.0  # between two lines of a log


class Bar:
    """A bar on a terminal or in a notebook; elsewhere, such as in a log file, a line a minute."""

    def __init__(
        self,
        total: int | None,
        unit: str,
        description: str = "",
        *,
        done: int = 0,
        shown: bool = True,
        lines: bool = True,
    ):
        """Nothing is seen of it yet where it becomes lines.

        Args:
          total: of what is counted; None: nobody knows.
          unit: what is counted, a plural.
          description: of the work.
          done: how much of the total is done already.
          shown: False: neither bar nor lines.
          lines: False: no lines either where there is no bar.
        """
        self.live = shown and _somebody_looks()
        self._bar = _tqdm(total, unit, description, done) if self.live else None
        self._lines = shown and lines and not self.live
        self._total, self._unit, self._description = total, unit, description
        self._before = self._done = done
        self._start = self._told = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.close()

    def update(self, more: int = 1) -> None:
        """So many more are done."""
        self._done += more
        if self._bar is not None:
            self._bar.update(more)
        elif self._lines and (now := time.monotonic()) - self._told >= _SECONDS:
            self._told = now
            log.info("%s", self._line(now - self._start))

    def note(self, text: str) -> None:
        """Show this behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def _line(self, seconds: float) -> str:
        what = f"{self._description}: " if self._description else ""
        if self._total is None or self._done == self._before:
            return f"{what}{self._done:,} {self._unit}"
        left = seconds / (self._done - self._before) * max(0, self._total - self._done)
        minutes, seconds = divmod(round(left), 60)
        of = f"{self._done:,} of {self._total:,} {self._unit}"
        return f"{what}{of}  {minutes}:{seconds:02d} left"


def _somebody_looks() -> bool:
    # Closed streams are None.
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_notebook()


def _in_notebook() -> bool:
    """Whether this is the kernel of one: IPython is imported then."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def _tqdm(total: int | None, unit: str, description: str, done: int) -> Any:
    # Here: only who looks at a bar waits for it.
    with warnings.catch_warnings():
        # A notebook without ipywidgets has a bar of text; tqdm would call that a mistake.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

        return tqdm(
            total=total, initial=done, unit=f" {unit}", desc=description or None, smoothing=0.1
        )
