# SPDX-License-Identifier: Apache-2.0
"""What Orbax keeps of a run: the last checkpoints, the best one by BLEU, and their average.

<workdir>/checkpoints/<step>/params      the weights, nested by module and parameter name
<workdir>/checkpoints/<step>/optimizer   Adam's moments and counts
<workdir>/average/<step>/                the mean of the last n checkpoints' weights (section 6.1)
"""

import logging
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from transformer_jax.config import Config
from transformer_jax.errors import UserError
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.step import Params, TrainState, model_structure

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder: saved in the background, each whole or not at all."""

    def __init__(self, workdir: Path, keep: int):
        """`keep`: how many of the last checkpoints stay, besides the best."""
        self.workdir = workdir
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["bleu"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
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
        self._manager.close()

    def save(self, state: TrainState, bleu: float | None = None) -> None:
        """Copy the state off the devices and write it in the background; `bleu` ranks it."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.optimizer),
                ),
                metrics=None if bleu is None else {"bleu": bleu},
            )
        except OSError as error:
            raise _save_error(self.workdir, error) from error

    def wait(self) -> None:
        """Until everything is on disk."""
        try:
            self._manager.wait_until_finished()
        except OSError as error:
            raise _save_error(self.workdir, error) from error

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, on the devices of the abstract state `like`.

        A damaged one is moved to <workdir>/damaged and the one before it is taken. None: there is
        no checkpoint.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardRestore(like.params),
                        optimizer=ocp.args.StandardRestore(like.optimizer),
                    ),
                )
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                _warn_of_damage(self.workdir, step, error)
                damaged = self.workdir / "damaged"
                damaged.mkdir(exist_ok=True)
                shutil.move(_folder(self.workdir) / str(step), damaged / str(step))
                self._manager.reload()
                continue
            number = jax.device_put(jnp.int32(step), like.step.sharding)
            return TrainState(number, restored.params, restored.optimizer)
        if steps:
            raise UserError(
                f"every checkpoint in {_folder(self.workdir)} is damaged; they lie in "
                f"{self.workdir / 'damaged'} now: bring back a copy, or start again with the same "
                "command"
            )
        return None


def load_model(workdir: str | Path, which: str = "latest") -> tuple[Config, Transformer, int]:
    """A run's config, its model with the weights of a checkpoint, and the checkpoint's step.

    `which`: "latest", "best" (by validation BLEU), "average" or a step.

    Raises:
      UserError: no run folder, no such checkpoint, or none that can be read.
    """
    config = load_config(workdir)
    step, params = load_params(workdir, which)
    return config, nnx.merge(model_structure(config), params), step


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
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}") from None


def load_params(workdir: str | Path, which: str = "latest") -> tuple[int, Params]:
    """(step, weights) of a checkpoint, on one device; see `load_model`."""
    workdir = Path(workdir)
    like = _abstract_params(load_config(workdir))
    for folder, step in _candidates(workdir, which):
        try:
            return step, _read(folder, like)
        except Exception as error:  # as in Checkpoints.restore
            _warn_of_damage(workdir, step, error)
    raise UserError(f"no checkpoint of {workdir} can be read with --checkpoint={which}")


def average(workdir: str | Path, last: int) -> Path:
    """Write the mean of the last n checkpoints' weights, which "average" names from then on.

    Raises:
      UserError: there are fewer than `last` checkpoints.
    """
    workdir = Path(workdir)
    steps = saved_steps(workdir)
    if not 0 < last <= len(steps):
        raise UserError(
            f"--last={last} cannot be averaged, {_folder(workdir)} holds {len(steps)} "
            "checkpoint(s); config.train.keep says how many a run keeps"
        )
    like = _abstract_params(load_config(workdir))
    total: Any = None
    for step in steps[-last:]:
        params = _read(_folder(workdir) / str(step) / "params", like)
        # In float64 on the host, so that the order of the checkpoints does not matter.
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        total = params if total is None else jax.tree.map(np.add, total, params)
    mean = jax.tree.map(lambda leaf: (leaf / last).astype(np.float32), total)
    folder = workdir.absolute() / "average" / str(steps[-1])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, mean, force=True)
    for old in folder.parent.iterdir():
        if old != folder:
            shutil.rmtree(old)
    return folder


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a finished checkpoint, in order."""
    return _steps_in(_folder(workdir))


def _candidates(workdir: Path, which: str) -> list[tuple[Path, int]]:
    """Where the weights may lie, best first, with their steps."""
    steps = saved_steps(workdir)
    if which == "average":
        averaged = _steps_in(workdir.absolute() / "average")
        if not averaged:
            raise UserError(
                f"{workdir} has no averaged checkpoint; write one with "
                f"python -m transformer_jax.average --workdir={workdir} --last=5"
            )
        return [(workdir.absolute() / "average" / str(averaged[-1]), averaged[-1])]
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
    return [(_folder(workdir) / str(step) / "params", step) for step in chosen]


def _best(workdir: Path, steps: list[int]) -> int:
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(_folder(workdir), options=options) as manager:
        scores = {step: (manager.metrics(step) or {}).get("bleu") for step in steps}
    scored = {step: score for step, score in scores.items() if score is not None}
    if not scored:
        raise UserError(
            f"no checkpoint of {workdir} has a BLEU score, so none is best; use --checkpoint=latest"
        )
    return max(scored, key=scored.__getitem__)


def _read(folder: Path, like: Params) -> Params:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, like)


def _abstract_params(config: Config) -> Params:
    here = SingleDeviceSharding(jax.local_devices()[0])
    model = nnx.eval_shape(lambda: Transformer(config.model, rngs=nnx.Rngs(0)))
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
    reason = str(error).strip().split("\n")[0][:200]
    log.warning(
        "checkpoint %d of %s is damaged (%s); trying the one before it", step, workdir, reason
    )


def _save_error(workdir: Path, error: OSError) -> UserError:
    return UserError(f"could not save a checkpoint in {_folder(workdir)}: {error}")
