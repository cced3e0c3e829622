# SPDX-License-Identifier: Apache-2.0
"""Where a run's numbers go: metrics.jsonl, TensorBoard and the progress bar."""

import contextlib
import json
import logging
import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from transformer_jax.files import write_whole
from transformer_jax.progress import Bar

log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes scalars by step; after a resume, what a lost stretch of the run wrote is cut off.

    Of many processes the first one writes.
    """

    def __init__(self, workdir: Path, start_step: int):
        """`start_step`: the run goes on after this one."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._path = metrics_path(workdir)
        _drop_after(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._lock = threading.Lock()  # the loop's log has a thread of its own
        # Written here and now: the queue of tensorboardX's SummaryWriter would fail in its thread.
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        self._write_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writes:
            # On a full disk it fails to close as well; what ended the run says so already.
            with contextlib.suppress(OSError) if error else contextlib.nullcontext():
                self._file.close()
                self._events.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl (null for what is not finite), and one TensorBoard event a scalar.

        Raises:
          OSError: names the file if it cannot be written, because the disk is full or for worse.
        """
        if not (scalars and self._writes):
            return
        finite = {name: x if math.isfinite(x) else None for name, x in scalars.items()}
        try:
            with self._lock:
                self._file.write(json.dumps({"step": step, **finite}) + "\n")
                self._file.flush()
                for name, value in scalars.items():
                    summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
                    self._write_event(step, summary=summary)
                self._events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _write_event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


def metrics_path(workdir: Path) -> Path:
    """Where a run's metrics are."""
    return workdir / "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; what a process that was killed left half-written is not one."""
    try:
        text = metrics_path(workdir).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    entries = []
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries


def _drop_after(path: Path, step: int) -> None:
    """Keep what belongs to steps up to `step`, but for the test's score: the end writes it anew."""
    kept = [
        entry
        for entry in read_metrics(path.parent)
        if entry["step"] <= step and "test/bleu" not in entry
    ]
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())


class Progress:
    """A live bar where somebody looks on; elsewhere a line of the log at every report."""

    def __init__(self, start_step: int, num_steps: int):
        """The bar starts at `start_step` of `num_steps`."""
        self._num_steps = num_steps
        first = jax.process_index() == 0
        self._bar = Bar(num_steps, "steps", done=start_step, shown=first, lines=False)

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
        if self._bar.live:
            self._bar.note(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")
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
