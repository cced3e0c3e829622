# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: metrics.jsonl, TensorBoard and the progress bar."""

import json
import logging
import sys
from pathlib import Path
from types import TracebackType

import tensorboardX
from tqdm import tqdm

log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes scalars by step; after a resume, what a lost stretch of the run wrote is cut off."""

    def __init__(self, workdir: Path, start_step: int):
        """`start_step`: the run goes on after this one."""
        self._path = workdir / "metrics.jsonl"
        _drop_after(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1
        )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._tensorboard.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl, and one TensorBoard event a scalar."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)


def _drop_after(path: Path, step: int) -> None:
    """Keep the whole lines of a metrics file that belong to steps up to `step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a process that was killed while it wrote
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class Progress:
    """A live bar on a terminal; elsewhere a line of the log at every report."""

    def __init__(self, start_step: int, num_steps: int):
        """The bar starts at `start_step` of `num_steps`."""
        self._num_steps = num_steps
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=num_steps, initial=start_step, unit="step", disable=not self._live, smoothing=0.1
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self) -> None:
        """One step more."""
        self._bar.update()

    def report(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """Show the loss, the speed (source and target tokens) and the time left."""
        if self._live:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")
            return
        minutes, seconds = divmod(round(seconds_left), 60)
        log.info(
            "step %d/%d  loss %.3f  %s tokens/s  %d:%02d left",
            step,
            self._num_steps,
            loss,
            f"{tokens_per_second:,.0f}",
            minutes,
            seconds,
        )
