# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, and what happens between them."""

import collections
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from transformer_jax.config import Config
from transformer_jax.data.batch import Batch
from transformer_jax.errors import UserError
from transformer_jax.training.loss import LossSums, Means
from transformer_jax.training.metrics import MetricsWriter, Progress
from transformer_jax.training.optimizer import learning_rate
from transformer_jax.training.sharding import batch_sharding
from transformer_jax.training.step import TrainState, make_train_step

_logger = logging.getLogger(__name__)

_MOST_SKIPPED = 50  # steps in a row: from there on the weights are at fault, not the batches

Evaluate = Callable[[TrainState], dict[str, float]]  # -> scalars by name


def train(
    config: Config,
    mesh: Mesh,
    state: TrainState,
    batches: Iterator[Batch],
    writer: MetricsWriter,
    *,
    evaluate: Evaluate,
    save: Callable[[TrainState], None],
    should_stop: Callable[[], bool] = lambda: False,
    evaluate_first: bool = False,
) -> TrainState:
    """Train from `state` to config.train.num_steps, or until `should_stop`; the last state is saved.

    `batches` starts with the batch of step `state.step`. `evaluate_first`: that step's evaluation is
    missing, since the process before this one ended in it. The device never waits for logging: sums
    are fetched by another thread while the next steps run.

    Raises:
      UserError: a step was bad (training/step.py), and config.train.on_bad_step does not skip it;
        nothing that came after it is saved.
    """
    timing = config.train
    train_step = make_train_step(config, mesh)
    start = int(state.step)
    in_flight = _InFlight(config, start, steps_ahead(mesh))
    shapes: set[tuple[int, ...]] = set()
    with Progress(start, timing.num_steps) as progress, _Log(config, writer, progress) as log:
        if evaluate_first:
            with log.paused():
                writer.write(start, evaluate(state))
        for step in range(start + 1, timing.num_steps + 1):
            batch = put(next(batches), mesh)
            if batch.source.ids.shape not in shapes:
                shapes.add(batch.source.ids.shape)
                _logger.info("compiling the step for batches of %d x %d", *batch.source.ids.shape)
            state, sums = train_step(state, batch)
            log.add(batch, sums)
            in_flight.add(sums)
            progress.advance()
            if step % timing.log_every == 0 or step == timing.num_steps:
                log.report(step)
            evaluating = step % timing.eval_every == 0 or step == timing.num_steps
            stopping = should_stop()
            if evaluating or stopping or step % timing.checkpoint_every == 0:
                in_flight.drain()
                in_flight.saved = step
                save(state)  # before the evaluation: whatever happens there, the steps are safe
            if evaluating and not stopping:
                with log.paused():
                    writer.write(step, evaluate(state))
                stopping = should_stop()
            if stopping:
                break
    return state


def steps_ahead(mesh: Mesh) -> int:
    """How many steps the host may be ahead of the devices.

    On accelerators enough that they never wait for the host. On a CPU every step that waits has its
    temporary arrays already, 3.7 GB for base, and other ones than the step before it had: without
    any a small model's step is 4 % faster.
    """
    return 0 if mesh.devices.flat[0].platform == "cpu" else 2


def put(batch: Batch, mesh: Mesh) -> Batch:
    """The process's share of a batch, as its part of the global arrays on the devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), batch
    )


class _InFlight:
    """The steps that the device has not finished; each is judged when it has."""

    def __init__(self, config: Config, start: int, ahead: int):
        self._config, self._ahead = config, ahead
        self._finished, self._skipped = start, 0
        self.saved = start  # the step of the last checkpoint, 0 if there is none
        self._sums: collections.deque[LossSums] = collections.deque()

    def add(self, sums: LossSums) -> None:
        self._sums.append(sums)
        self.drain(self._ahead)

    def drain(self, leave: int = 0) -> None:
        """Wait until at most so many are left."""
        while len(self._sums) > leave:
            sums = jax.block_until_ready(self._sums.popleft())
            self._finished += 1
            self._skipped = 0 if float(sums.tokens) else self._skipped + 1
            stops = self._config.train.on_bad_step == "stop"
            if self._skipped > (0 if stops else _MOST_SKIPPED):
                self._fail()

    def _fail(self) -> None:
        step, many = self._finished, self._skipped
        remedy = (
            "config.train.on_bad_step=skip goes on without such steps"
            if many == 1
            else f"it is the last of {many} that were skipped in a row: lower the learning rate"
        )
        saved = (
            f"the last checkpoint is that of step {self.saved}" if self.saved else "none is saved"
        )
        raise UserError(
            f"step {step} has a loss or gradient that is not finite, or a loss that exploded; it "
            f"changed nothing, and {saved}. The same command with --replay_step={step} shows its "
            f"batch; {remedy}"
        )


class _Counts(NamedTuple):
    """One step's sums, still on the device, and the positions of its global batch."""

    sums: LossSums
    positions: int


class _Log:
    """Gathers the steps since the last report and reports them from a thread of its own."""

    def __init__(self, config: Config, writer: MetricsWriter, progress: Progress):
        self._config, self._writer, self._progress = config, writer, progress
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._reports: list[Future] = []
        self._window: list[_Counts] = []
        self._since = time.perf_counter()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:  # what ended the run already says more than what the log failed with
            self._raise_failed()

    def add(self, batch: Batch, sums: LossSums) -> None:
        positions = batch.source.segments.size + batch.target.segments.size
        self._window.append(_Counts(sums, positions))

    def report(self, step: int) -> None:
        self._raise_failed()
        now = time.perf_counter()
        window, seconds = self._window, now - self._since
        self._window, self._since = [], now
        self._reports.append(self._thread.submit(self._write, step, window, seconds))

    def paused(self) -> "_Paused":
        """A context whose time does not count as training time."""
        return _Paused(self)

    def skip(self, seconds: float) -> None:
        self._since += seconds

    def _raise_failed(self) -> None:
        done = [report for report in self._reports if report.done()]
        self._reports = [report for report in self._reports if not report.done()]
        for report in done:
            report.result()

    def _write(self, step: int, window: list[_Counts], seconds: float) -> None:
        means = Means.of(counts.sums for counts in window)
        tokens = sum(
            float(counts.sums.source_tokens) + float(counts.sums.tokens) for counts in window
        )
        config = self._config
        rate = learning_rate(step, config.optimizer, config.model.d_model)
        scalars = {
            "train/loss": means.loss,
            "train/perplexity": means.perplexity,
            "train/accuracy": means.accuracy,
            "train/learning_rate": float(rate),
            "train/tokens_per_second": tokens / seconds,
            "train/seconds_per_step": seconds / len(window),
            "train/real_positions": tokens / sum(counts.positions for counts in window),
            "train/skipped": sum(not float(counts.sums.tokens) for counts in window),
        }
        self._writer.write(step, scalars)
        left = (config.train.num_steps - step) * seconds / len(window)
        self._progress.report(step, scalars["train/loss"], scalars["train/tokens_per_second"], left)


class _Paused:
    """See `_Log.paused`."""

    def __init__(self, log: _Log):
        self._log = log

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._log.skip(time.perf_counter() - self._start)
