# SPDX-License-Identifier: Apache-2.0
"""A whole training run in a run folder: what `python -m transformer_jax.main` and notebooks call."""

import contextlib
import dataclasses
import logging
import signal
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from flax import nnx

from transformer_jax import distributed, runtime
from transformer_jax.checkpoints import (
    Checkpoints,
    average,
    averaged_steps,
    check_folder,
    load_config,
    load_params,
    saved_steps,
)
from transformer_jax.config import LEARNING_FIELDS, PLACES, RESUMABLE_FIELDS, Config
from transformer_jax.data import pipeline
from transformer_jax.errors import UserError
from transformer_jax.evaluation import make_likelihood, write_translations
from transformer_jax.files import alone_in, write_whole
from transformer_jax.inference.scores import Scores, score
from transformer_jax.inference.translator import Translator
from transformer_jax.training import step as training_step
from transformer_jax.training.loop import train
from transformer_jax.training.metrics import MetricsWriter, read_metrics
from transformer_jax.training.sharding import batch_ways, make_mesh, share_of_process, spread

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a finished run is judged by."""

    workdir: Path
    step: int
    scores: Scores | None  # of the averaged checkpoint on the test split, if there is one
    examples: list[tuple[str, str, str]]  # source, translation, reference


class Interrupted(Exception):
    """A signal ended the run before its last step; everything up to `step` is saved."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(signal_number, step)
        self.signal_number, self.step = signal_number, step


def run_training(config: Config, workdir: str | Path) -> Summary:
    """Train to the end, or go on where the folder's last checkpoint stands; then average and score.

    Raises:
      UserError: something that the user can mend, in one line.
      Interrupted: SIGINT, SIGTERM or SIGHUP came; the state is saved. (Outside the main thread nothing
        is told of signals.)
    """
    runtime.show_log()
    workdir = Path(workdir)
    check_folder(workdir)
    log.info("devices: %s", runtime.devices())
    config = settled(config, workdir)
    mesh = make_mesh(config.mesh)
    with contextlib.ExitStack() as held:

        def prepare() -> None:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--workdir={workdir} cannot be used: {error.strerror}") from None
            held.enter_context(alone_in(workdir))
            made_with = _made_with(workdir)
            if made_with:
                check_same(made_with, config, workdir)
            pipeline.prepare(config, workdir, resumes=made_with)
            write_whole(workdir / "config.json", config.to_json().encode())

        distributed.on_first(prepare)
        try:
            written = load_config(workdir)
        except UserError:
            if jax.process_index() == 0:
                raise
            raise UserError(
                f"process {jax.process_index()} cannot read {workdir}/config.json, which process 0 wrote; "
                "--workdir must be on a file system that all processes share"
            ) from None
        if written != config:
            raise UserError(
                f"process {jax.process_index()} has another config than process 0, which wrote "
                f"{workdir}/config.json; start all processes with the same command"
            )
        dataset = pipeline.prepared(config, workdir)
        step = _train(config, mesh, dataset, workdir)
        return finish(config, mesh, dataset, workdir, step)


def settled(config: Config, workdir: Path) -> Config:
    """The config as a run in this folder has it: with what config.train.init_from and the folder decide.

    The first run gives architecture and vocabulary; what only training or the device decides, dropout
    and dtype, stays as the config has it. A folder with checkpoints has both already, so that the first
    run need not be there any more, and keeps what its vocabulary was learned with.

    Raises:
      UserError: config.train.init_from is no run folder.
    """
    first, made_with = config.train.init_from, _made_with(workdir)
    if first and made_with and made_with.train.init_from and not Path(first).exists():
        log.info("config.train.init_from=%s is not there, and not needed any more", first)
        config = _with_model_of(made_with, config, made_with.data.vocab_path)
    elif first:
        config = _with_model_of(load_config(first), config, str(Path(first) / "vocabulary.model"))
    if made_with:
        config = _with_learning_of(made_with, config, workdir)
    return config


def _with_model_of(initial: Config, config: Config, vocab_path: str) -> Config:
    """The config with the architecture of another, and its vocabulary."""
    model = dataclasses.replace(
        initial.model,
        dropout=config.model.dropout,
        attention_dropout=config.model.attention_dropout,
        activation_dropout=config.model.activation_dropout,
        dtype=config.model.dtype,
    )
    learned = initial.model.positions == "learned"
    longest = initial.model.max_length if learned else config.data.max_length
    data = dataclasses.replace(
        config.data,
        vocab_size=initial.model.vocab_size,
        vocab_path=vocab_path,
        max_length=min(config.data.max_length, longest),
    )
    return dataclasses.replace(config, model=model, data=data)


def _with_learning_of(made_with: Config, config: Config, workdir: Path) -> Config:
    """The config with what the folder's vocabulary was learned with, which nothing reads again."""
    kept = {name: getattr(made_with.data, name) for name in LEARNING_FIELDS}
    for name, value in kept.items():
        if value != (asked := getattr(config.data, name)):
            log.warning("config.data.%s stays %r in %s, not %r", name, value, workdir, asked)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **kept))


def _made_with(workdir: Path) -> Config | None:
    """The config that the folder's checkpoints were made with, if it has any."""
    return load_config(workdir) if saved_steps(workdir) else None


def check_same(old: Config, new: Config, workdir: Path) -> None:
    """Refuse a config that would not train the folder's model.

    Raises:
      UserError: names the first field that differs.
    """
    for section in ("data", "model", "optimizer", "train"):  # model.vocab_size follows data's
        before, after = getattr(old, section), getattr(new, section)
        for field in dataclasses.fields(before):
            name = f"{section}.{field.name}"
            was, now = getattr(before, field.name), getattr(after, field.name)
            moved = name in PLACES and was and now  # whether to the same is looked at elsewhere
            if was != now and name not in RESUMABLE_FIELDS and not moved:
                raise UserError(
                    f"{workdir} was made with config.{name}={was!r}, this config has {now!r}; "
                    "use another --workdir, or the value that it was made with"
                )


def _train(
    config: Config, mesh: jax.sharding.Mesh, dataset: pipeline.Dataset, workdir: Path
) -> int:
    """Train from the newest checkpoint to the last step, which is returned."""
    every, keep = config.train.checkpoint_every, config.train.keep
    with Checkpoints(workdir, every=every, keep=keep) as checkpoints, _signals() as caught:
        state = checkpoints.restore(training_step.abstract_state(config, mesh))
        if state is None:
            state = first_state(config, mesh)
        else:
            log.info("resuming after step %d", state.step)
        start = int(state.step)
        batches = pipeline.training_batches(
            dataset,
            config,
            start_step=start,
            rows_multiple=batch_ways(mesh) * config.train.accumulate,
            share=share_of_process(mesh),
        )
        vote = distributed.Vote()

        def should_stop() -> bool:
            return bool(vote(max(caught, default=0)))

        with MetricsWriter(workdir, start) as writer:
            state = train(
                config,
                mesh,
                state,
                iter(batches),
                writer,
                evaluate=_evaluator(config, dataset, mesh, workdir, should_stop),
                save=checkpoints.save,
                should_stop=should_stop,
                evaluate_first=_lacks_evaluation(config, workdir, start),
            )
        checkpoints.wait()
        signal_number = vote.close(max(caught, default=0))
    step = int(state.step)
    if signal_number:
        raise Interrupted(signal_number, step)
    return step


def first_state(config: Config, mesh: jax.sharding.Mesh) -> training_step.TrainState:
    """Random weights, or those of the newest checkpoint of config.train.init_from."""
    state = training_step.initial_state(config, mesh)
    if not config.train.init_from:
        return state
    step, params = load_params(config.train.init_from)
    log.info("starting from the weights of %s, step %d", config.train.init_from, step)
    params = jax.tree.map(lambda new, old: spread(new, old.sharding), params, state.params)
    return dataclasses.replace(state, params=params)


def _lacks_evaluation(config: Config, workdir: Path, step: int) -> bool:
    """Whether the evaluation of this step is due and not in the metrics; the same in every process."""
    due = step > 0 and (step % config.train.eval_every == 0 or step == config.train.num_steps)
    found = any(
        entry["step"] == step and "eval/perplexity" in entry for entry in read_metrics(workdir)
    )
    return bool(distributed.largest(due and not found and distributed.is_first()))


class _Stopped(Exception):
    """Ends an evaluation that a signal came into."""


def _evaluator(
    config: Config,
    dataset: pipeline.Dataset,
    mesh: jax.sharding.Mesh,
    workdir: Path,
    should_stop: Callable[[], bool],
) -> Callable[[training_step.TrainState], dict[str, float]]:
    """A function from the state to the validation split's perplexity and BLEU.

    It ends early, with nothing, when the run should stop: the next process evaluates that step anew.
    """
    likelihood = make_likelihood(config, dataset.vocabulary, mesh)
    translator: Translator | None = None

    def go_on() -> None:
        if should_stop():
            raise _Stopped

    def evaluate(state: training_step.TrainState) -> dict[str, float]:
        try:
            return scores(state)
        except _Stopped:
            return {}

    def scores(state: training_step.TrainState) -> dict[str, float]:
        nonlocal translator
        text = dataset.text("validation")
        if text is None:
            return {}
        means = likelihood(state.params, *text, go_on)
        if translator is None:
            model = nnx.merge(training_step.model_structure(config.model), state.params)
            translator = Translator(
                model, dataset.vocabulary, config.decode, config.data.max_length, mesh=mesh
            )
        step = int(state.step)
        log.info("step %d  translating %d lines of the validation split", step, len(text[0]))
        hypotheses = translator.with_params(state.params).translate(text[0], before_batch=go_on)
        write_translations(workdir, "validation", step, hypotheses)
        bleu = score(hypotheses, text[1], bootstrap=0)["bleu"]
        log.info("step %d  validation BLEU %.2f  perplexity %.3f", step, bleu, means.perplexity)
        return {
            "eval/perplexity": means.perplexity,
            "eval/accuracy": means.accuracy,
            "eval/bleu": bleu,
        }

    return evaluate


def finish(
    config: Config, mesh: jax.sharding.Mesh, dataset: pipeline.Dataset, workdir: Path, step: int
) -> Summary:
    """Average the last checkpoints, as the paper does, and score them on the test split."""
    last = min(config.train.keep, len(averaged_steps(workdir, config)))
    distributed.on_first(lambda: average(workdir, last))
    text = dataset.text("test")
    if text is None:
        return Summary(workdir, step, None, [])
    log.info("translating %d lines of the test split", len(text[0]))
    translator = Translator.from_workdir(workdir, "average", mesh=mesh)
    hypotheses = translator.translate(text[0], progress=distributed.is_first())
    write_translations(workdir, "test", f"average.{step}", hypotheses)
    examples = list(zip(text[0], hypotheses, text[1], strict=True))[:: max(1, len(text[0]) // 5)]
    scores = score(hypotheses, text[1])
    with MetricsWriter(workdir, step) as writer:
        writer.write(step, {"test/bleu": scores["bleu"]})
    return Summary(workdir, step, scores, examples[:5])


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The list that signals which end a run are added to; a second SIGINT interrupts at once.

    Outside the main thread Python lets nobody listen, and the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: types.FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        log.warning("signal %d: saving after this step", number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # of a terminal that is closed; not on Windows
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:  # as under nohup
        numbers.append(hangup)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(summary: Summary) -> str:
    """The summary as a person reads it."""
    lines = []
    for source, translation, reference in summary.examples:
        lines += [
            f"  source       {source}",
            f"  translation  {translation}",
            f"  reference    {reference}",
            "",
        ]
    if summary.scores is not None:
        lines.append(f"test BLEU {summary.scores['bleu']:.2f}  ({summary.scores['signature']})")
    lines.append(f"run folder: {summary.workdir}")
    return "\n".join(lines)
