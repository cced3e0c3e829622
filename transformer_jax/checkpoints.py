# SPDX-License-Identifier: Apache-2.0
"""What Orbax keeps of a run: the last checkpoints, the best one by BLEU, and their average.

<workdir>/checkpoints/<step>/params      the weights, nested by module and parameter name
<workdir>/checkpoints/<step>/optimizer   Adam's moments and counts
<workdir>/checkpoints/<step>/about       the format, the config and the vocabulary's hash
<workdir>/average/<step>/                the mean of the last n checkpoints' weights (section 6.1):
                                         params and about
"""

import collections
import contextlib
import dataclasses
import fnmatch
import hashlib
import itertools
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from transformer_jax import distributed
from transformer_jax.config import RESUMABLE_FIELDS, Config, ConfigError, ModelConfig
from transformer_jax.errors import UserError, first_line
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.sharding import spread
from transformer_jax.training.step import Params, TrainState, model_structure

log = logging.getLogger(__name__)

_FORMAT = 1  # of what this module writes; a reader refuses every other number


class Checkpoints:
    """The checkpoints of one run folder: saved in the background, each whole or not at all."""

    def __init__(self, workdir: Path, *, every: int, keep: int):
        """The last `keep` of those that are `every` steps apart stay, the newest, and the best."""
        self.workdir = workdir
        self._bytes = 0  # of the last state that was to be saved
        self._unchecked: Path | None = None  # what was saved last, until it is known to be whole
        policy = _Preserved(workdir, every, keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self._manager = ocp.CheckpointManager(_folder(workdir), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # it would wait for processes that wait for this one
        try:
            if isinstance(error, OSError):
                self.wait()  # a disk that is full fails the save too, which says what it needs
        finally:
            self._manager.close()

    def save(self, state: TrainState) -> None:
        """Copy the state off the devices and write it in the background.

        Raises:
          UserError: this one, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with _told_as_user_error(_folder(self.workdir), self._bytes):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.optimizer),
                    about=ocp.args.JsonSave(_about(self.workdir)),
                ),
            )
        self._unchecked = _folder(self.workdir) / str(step)

    def wait(self) -> None:
        """Until everything is on disk.

        Raises:
          UserError: the last one could not be written, or is not whole.
        """
        with _told_as_user_error(_folder(self.workdir), self._bytes):
            self._manager.wait_until_finished()
            if self._unchecked and distributed.is_first():
                _check_whole(self._unchecked)
        self._unchecked = None

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, on the devices of the abstract state `like`.

        Newer ones are moved to <workdir>/damaged. None: there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read, or the newest is of another format,
            model or vocabulary; all stay where they are.
        """
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                _check_about(_folder(self.workdir) / str(step), self.workdir)
                if not (_folder(self.workdir) / str(step) / "optimizer").exists():
                    raise UserError(
                        f"checkpoint {step} in {_folder(self.workdir)} has weights alone; train from "
                        f"them with --config.train.init_from={self.workdir} in another --workdir"
                    )
                _check_whole(_folder(self.workdir) / str(step))
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(like.params),
                        optimizer=ocp.args.StandardRestore(like.optimizer),
                    ),
                )
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                if jax.process_count() > 1:  # the others may have read their parts of it
                    raise UserError(
                        f"checkpoint {step} in {_folder(self.workdir)} cannot be read "
                        f"({first_line(error)}); move it away, and the same command goes on from "
                        "the one before it"
                    ) from error
                _warn_of_damage(self.workdir, step, error)
                failures[step] = first_line(error)
                continue
            for damaged in failures:
                self._move_away(damaged)
            number = spread(np.int32(step), like.step.sharding)
            return TrainState(number, restored.params, restored.optimizer)
        if failures:
            newest, reason = next(iter(failures.items()))
            raise UserError(
                f"no checkpoint in {_folder(self.workdir)} can be read ({newest}: {reason}); bring "
                "back a copy, or start anew in another --workdir"
            )
        return None

    def _move_away(self, step: int) -> None:
        """Out of the manager's sight: it would not save this step again."""
        folder = self.workdir / "damaged"
        folder.mkdir(exist_ok=True)
        names = itertools.chain([f"{step}"], (f"{step}.{n}" for n in itertools.count(2)))
        place = next(folder / name for name in names if not (folder / name).exists())
        shutil.move(_folder(self.workdir) / str(step), place)
        self._manager.reload()


@contextlib.contextmanager
def _told_as_user_error(folder: Path, size: int) -> Iterator[None]:
    """Around the writing of a checkpoint of `size` bytes."""
    try:
        yield
    except Exception as error:  # OSError from Orbax, ValueError from TensorStore, ...
        if distributed.lost_another(error):
            raise
        free = shutil.disk_usage(folder.parent).free
        before = next((step for step in _steps_in(folder)[::-1] if _is_whole(folder, step)), None)
        last = f"the last whole one is that of step {before}" if before else "none is before it"
        full = free < size or re.search("no space|quota", str(error), re.IGNORECASE)
        remedy = "make room" if full else "mend that"
        raise UserError(
            f"a checkpoint could not be saved in {folder}: {first_line(error)}; it needs "
            f"{size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there; {last}; "
            f"{remedy}, and give the same command again"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Preserved(preservation_policy.PreservationPolicy):
    """What Orbax keeps: the last `keep` of every so many steps, the newest, the best by BLEU."""

    workdir: Path
    every: int
    keep: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax asks before it deletes."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*_regular(steps, self.every)[-self.keep :], *steps[-1:]}
        scores = _scores(self.workdir, steps)
        if scores:
            kept.add(max(scores, key=scores.__getitem__))
        return [step in kept for step in steps]


def load_model(
    workdir: str | Path, which: str | int | None = None
) -> tuple[Config, Transformer, str]:
    """A run's config, its model with the weights of a checkpoint, and which they are.

    The model's attention is the best one here, whatever it was trained with, maybe on another device.

    Args:
      workdir: the run folder.
      which: "latest", "best" (by validation BLEU), "average" or a step. None: the average, unless there
        is none or a checkpoint is newer; then the latest.

    Returns:
      The last one is a step, such as "3000", or "average.3000".

    Raises:
      UserError: no run folder, no such checkpoint, or none that can be read.
    """
    config = load_config(workdir)
    folder, params = _load(Path(workdir), which)
    here = dataclasses.replace(config.model, attention_implementation="auto")
    name = f"average.{folder.name}" if folder.parent.name == "average" else folder.name
    return config, nnx.merge(model_structure(here), params), name


def load_config(workdir: str | Path) -> Config:
    """The resolved config of a run folder."""
    path = Path(workdir) / "config.json"
    try:
        return Config.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is no run folder, it has no config.json; train one with "
            "python -m transformer_jax.main --config=... --workdir=..."
        ) from None
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def load_params(workdir: str | Path, which: str | int | None = "latest") -> tuple[int, Params]:
    """(step, weights) of a checkpoint, on one device; see `load_model`."""
    folder, params = _load(Path(workdir), which)
    return int(folder.name), params


def _load(workdir: Path, which: str | int | None) -> tuple[Path, Params]:
    """The folder and the weights of the best candidate that can be read."""
    like = abstract_params(load_config(workdir).model)
    for folder in _candidates(workdir, which):
        try:
            _check_about(folder, workdir)
            return folder, _read(folder / "params", like)
        except UserError:
            raise
        except Exception as error:  # as in Checkpoints.restore
            _warn_of_damage(workdir, int(folder.name), error)
    flag = "" if which is None else f" with --checkpoint={which}"
    raise UserError(f"no checkpoint of {workdir} can be read{flag}")


def load_state(workdir: Path, step: int, like: TrainState) -> TrainState:
    """The checkpoint of a step, on the devices of the abstract state `like`; nothing is written.

    Raises:
      UserError: it is of another format, model or vocabulary, or cannot be read.
    """
    folder = _folder(workdir) / str(step)
    try:
        _check_about(folder, workdir)
        params = _read(folder / "params", like.params)
        optimizer = _read(folder / "optimizer", like.optimizer)
    except UserError:
        raise
    except Exception as error:  # as in Checkpoints.restore
        raise UserError(
            f"checkpoint {step} in {folder.parent} cannot be read ({first_line(error)}); "
            "move it away, and the one before it serves"
        ) from error
    return TrainState(spread(np.int32(step), like.step.sharding), params, optimizer)


def average(workdir: str | Path, last: int) -> Path:
    """Write the mean of the last n checkpoints' weights, which "average" names from then on.

    Those count that are config.train.checkpoint_every steps apart, so that neither an evaluation nor
    an interruption changes the average; all of them, if there is no such one. One that cannot be
    read is left out with a warning.

    Raises:
      UserError: there are fewer than `last` checkpoints, none can be read, or one is of another format,
        model or vocabulary.
    """
    workdir = Path(workdir)
    config = load_config(workdir)
    steps = averaged_steps(workdir, config)
    if not 0 < last <= len(steps):
        raise UserError(
            f"--last={last} cannot be averaged, {_folder(workdir)} holds {len(steps)} "
            "checkpoint(s); config.train.keep says how many a run keeps"
        )
    like = abstract_params(config.model)
    total: Any = None
    read = 0
    for step in steps[-last:]:
        try:
            _check_about(_folder(workdir) / str(step), workdir)
            params = _read(_folder(workdir) / str(step) / "params", like)
        except UserError:
            raise
        except Exception as error:  # as in Checkpoints.restore
            log.warning("checkpoint %d is left out of the average: %s", step, first_line(error))
            continue
        # In float64 on the host, so that the order of the checkpoints does not matter.
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        total = params if total is None else jax.tree.map(np.add, total, params)
        read += 1
    if not read:
        raise UserError(f"none of the last {last} checkpoints in {_folder(workdir)} can be read")
    mean = jax.tree.map(lambda leaf: (leaf / read).astype(np.float32), total)
    folder = workdir.absolute() / "average" / str(steps[-1])
    _write_params(workdir, folder, mean)
    for old in folder.parent.iterdir():
        if old != folder and old.is_dir():
            shutil.rmtree(old)
    return folder


def save_params(workdir: str | Path, step: int, params: Params) -> None:
    """Write a checkpoint of weights alone: one to translate with, or to start another run from.

    Raises:
      UserError: it could not be written.
    """
    workdir = Path(workdir)
    _write_params(workdir, _folder(workdir) / str(step), params)


def _write_params(workdir: Path, folder: Path, params: Params) -> None:
    check_folder(workdir)
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(params), about=ocp.args.JsonSave(_about(workdir))
    )
    alone = _alone()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    with (
        _told_as_user_error(folder.parent, size),
        ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
    ):
        checkpointer.save(folder, items, force=True)
        _check_whole(folder)


def averaged_steps(workdir: Path, config: Config) -> list[int]:
    """The checkpoints that `average` takes its last from."""
    steps = saved_steps(workdir)
    return _regular(steps, config.train.checkpoint_every) or steps


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a finished checkpoint, in order."""
    return _steps_in(_folder(workdir))


def _candidates(workdir: Path, which: str | int | None) -> list[Path]:
    """The checkpoints' folders, best first."""
    steps = saved_steps(workdir)
    averages = workdir.absolute() / "average"
    averaged = [averages / str(step) for step in _steps_in(averages)[-1:]]
    if which is None:
        current = averaged if averaged and int(averaged[0].name) >= max(steps, default=0) else []
        return [*current, *(_candidates(workdir, "latest") if steps or not current else [])]
    which = str(which)
    if which == "average":
        if not averaged:
            raise UserError(
                f"{workdir} has no averaged checkpoint; write one with "
                f"python -m transformer_jax.average --workdir={workdir} --last=5"
            )
        return averaged
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet; its training has not saved one")
    if which == "latest":
        chosen = steps[::-1]
    elif which == "best":
        chosen = [_best(workdir, steps)]
    elif which.isdecimal() and int(which) in steps:
        chosen = [int(which)]
    else:
        raise UserError(
            f"--checkpoint={which} does not exist in {workdir}; there are latest, best, average "
            f"and {', '.join(map(str, steps))}"
        )
    return [_folder(workdir) / str(step) for step in chosen]


def _best(workdir: Path, steps: list[int]) -> int:
    scores = _scores(workdir, steps)
    if not scores:
        raise UserError(
            f"no checkpoint of {workdir} has a BLEU score, so none is best; use --checkpoint=latest"
        )
    return max(scores, key=scores.__getitem__)


def _scores(workdir: Path, steps: Sequence[int]) -> dict[int, float]:
    """The validation BLEU of those of these steps that were evaluated."""
    from transformer_jax.training.metrics import read_metrics  # here: it comes with tensorboardX

    scores = {
        entry["step"]: entry["eval/bleu"]
        for entry in read_metrics(workdir)
        if entry.get("eval/bleu") is not None
    }
    return {step: scores[step] for step in steps if step in scores}


def _regular(steps: Sequence[int], every: int) -> list[int]:
    return [step for step in steps if step % every == 0]


def _about(workdir: Path) -> dict[str, Any]:
    """What a checkpoint of this run folder says of itself; empty where the folder has no such file."""
    config, vocabulary = workdir / "config.json", workdir / "vocabulary.model"
    return {
        "format": _FORMAT,
        "config": json.loads(config.read_text(encoding="utf-8")) if config.exists() else {},
        "vocabulary": hashlib.sha256(vocabulary.read_bytes()).hexdigest()
        if vocabulary.exists()
        else "",
    }


def _check_about(checkpoint: Path, workdir: Path) -> None:
    """Refuse a checkpoint that does not belong to its run folder.

    Raises:
      UserError: its format, its model or its vocabulary is another one.
      ValueError, KeyError: its `about` is damaged.
    """
    path = checkpoint / "about" / "metadata"
    about: dict[str, Any] = {"format": None}
    if path.exists():
        about = json.loads(path.read_text(encoding="utf-8"))
    if about["format"] != _FORMAT:
        raise UserError(
            f"{checkpoint} has format {about['format']}, this version reads {_FORMAT}; read it with "
            "the version that wrote it, or train anew in another --workdir"
        )
    here = _about(workdir)
    model: dict[str, Any] = about["config"].get("model", {})
    model_here: dict[str, Any] = here["config"].get("model", {})
    for name, value in model.items():
        free = f"model.{name}" in RESUMABLE_FIELDS
        if not free and name in model_here and model_here[name] != value:
            raise UserError(
                f"{checkpoint} was trained with config.model.{name}={value!r}, {workdir}/config.json "
                f"has {model_here[name]!r}; bring back the config.json that belongs to it"
            )
    if about["vocabulary"] and about["vocabulary"] != here["vocabulary"]:
        raise UserError(
            f"{checkpoint} was trained with the vocabulary {about['vocabulary'][:12]} (sha256), "
            f"{workdir}/vocabulary.model is {here['vocabulary'][:12] or 'missing'}; bring back the file "
            "that belongs to it"
        )


def _read(folder: Path, like: Params) -> Params:
    _check_arrays(folder)
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        return checkpointer.restore(folder, like)


def _check_whole(checkpoint: Path) -> None:
    """Raises: ValueError, unless what a restore needs of weights and moments is there."""
    for item in ("params", "optimizer"):
        if (checkpoint / item).exists():
            _check_arrays(checkpoint / item)


def _is_whole(folder: Path, step: int) -> bool:
    try:
        _check_whole(folder / str(step))
    except Exception:  # of many kinds, see Checkpoints.restore
        return False
    return True


def _check_arrays(folder: Path) -> None:
    """Look for every chunk of the arrays that the folder should hold; none of them is read.

    Orbax collects in one table what the processes wrote, and an array of which that lacks a chunk has
    zeros there when it is read.

    Raises:
      ValueError: names the first array that is not whole.
      OSError, KeyError: what says which arrays there are cannot be read.
    """
    leaves = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))["tree_metadata"]
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    ).result()
    keys = collections.Counter(key.decode().rpartition("/")[0] for key in store.list().result())
    for leaf in leaves.values():
        name = ".".join(str(part["key"]) for part in leaf["key_metadata"])
        if name not in keys:
            raise ValueError(f"{folder.name} lacks {name}")
        array = json.loads(store.read(f"{name}/.zarray").result().value)
        chunks = math.prod(map(math.ceil, np.divide(array["shape"], array["chunks"])))
        if keys[name] != chunks + 1:  # and .zarray
            raise ValueError(f"{folder.name} has {keys[name] - 1} of {chunks} parts of {name}")


def check_folder(workdir: Path) -> None:
    """Refuse a folder in which Orbax would save nothing that can be read.

    Orbax looks for what the processes wrote with etils' `Path.glob`, which takes the folder's own name
    for a pattern: [ab] is then an a or a b.

    Raises:
      UserError: names the part of the path.
    """
    for part in workdir.absolute().parts:
        if not fnmatch.fnmatchcase(part, part):
            raise UserError(
                f"--workdir={workdir} cannot be used: Orbax loses checkpoints where a folder's name has "
                f"brackets, as {part!r} has; use another, or a symbolic link to it"
            )


def _alone() -> ocp.options.MultiprocessingOptions:
    """For what this process reads or writes by itself, whether or not there are others."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def abstract_params(config: ModelConfig) -> Params:
    """The shapes and dtypes of a model's weights, nested by module and parameter name."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )


def _folder(workdir: Path) -> Path:
    return workdir.absolute() / "checkpoints"


def _steps_in(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def _warn_of_damage(workdir: Path, step: int, error: Exception) -> None:
    reason = first_line(error)
    log.warning(
        "checkpoint %d of %s is damaged (%s); trying the one before it", step, workdir, reason
    )
