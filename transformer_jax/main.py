# SPDX-License-Identifier: Apache-2.0
"""Train a Transformer, or go on where the run folder stands.

    python -m transformer_jax.main --config=configs/demo.py
    python -m transformer_jax.main --config=configs/multi30k.py \\
        --config.data.path='data/{split}.{lang}' --workdir=runs/m30k

The package comes with configs/base.py, big.py, demo.py and multi30k.py; a file of that name in the current
folder is used instead. Any other Python file with such a get_config() will do.

Any value of the config is overridden by --config.<section>.<name>=<value>. The same command again
resumes after the last checkpoint, and does nothing but score once the run is finished.

On many hosts the same command runs on each, with a --workdir that all of them see and --distributed
(SLURM, GKE and TPU slices tell the rest), or else with

    --coordinator=<host of process 0>:<port> --num_processes=<how many> --process_id=<0, 1, ...>

Exit codes: 2 for what the user can mend; 143 after SIGTERM, 130 after SIGINT, 129 when the terminal was
closed (SIGHUP), with all steps saved; 75 if another process of the run died. After all but 2 the same
command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from transformer_jax import configs, errors
from transformer_jax.path_flags import define_path

if TYPE_CHECKING:
    from transformer_jax.config import Config

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's config, a Python file: configs/demo.py, configs/base.py, ..."
)


class _ConfigParser(ConfigFileFlagParser):
    """ml_collections', which also finds the package's own configs, and says at once what is wrong."""

    def parse(self, path: str) -> Any:
        """What the file's get_config() returns; for PATH:VARIANT it is given the variant."""
        name, *variant = path.split(":", 1)
        file = configs.find(name)
        try:
            config = super().parse(":".join([str(file), *variant]))
            if hasattr(config, "items"):  # raises what ml_collections keeps for later, an OSError
                return config
            wrong = f"has a get_config() that returns {type(config).__name__}, no config"
        except OSError as error:
            wrong = f"cannot be read: {error.__cause__ or error}"
        except (TypeError, ValueError) as error:  # their messages have a whole traceback in front
            wrong = f"cannot be loaded: {str(error).strip().splitlines()[-1]}"
        except AttributeError as error:
            if error.name != "get_config":
                raise
            wrong = "has no get_config()"
        raise errors.UserError(f"--config={path} {wrong}; configs/demo.py is an example")


# DEFINE_config_file takes none.
flags.FLAGS["config"].parser = _ConfigParser("config")
_WORKDIR = define_path("workdir", "The run folder; by default runs/<name of the config file>.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of many processes, as SLURM, GKE or a TPU slice started them."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where nothing else tells the processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which one this is, from 0 on, with --coordinator."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Compile the step without data, say what it needs, and refuse what cannot fit.",
)
_REPLAY_STEP = flags.DEFINE_integer(
    "replay_step", None, "Compute this step's loss and gradient again, and show its sentences."
)
flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> None:
    """Parse the flags, train, print the result."""
    # After the flags: --help need not wait for JAX.
    from transformer_jax import distributed, runtime

    processes = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    many = _DISTRIBUTED.value or any(value is not None for value in processes)
    runtime.set_up(join=lambda: distributed.start(*processes) if many else None)
    from transformer_jax.run import Interrupted, describe, run_training, settled

    workdir = Path(_WORKDIR.value or Path("runs") / config_name())
    if _DRY_RUN.value:
        from transformer_jax.dry_run import dry_run
        from transformer_jax.training.sharding import make_mesh

        config = settled(_config(), workdir)
        print(dry_run(config, make_mesh(config.mesh)))
        return
    if _REPLAY_STEP.value is not None:
        from transformer_jax.replay import replay

        print(replay(_config(), workdir, _REPLAY_STEP.value))
        return
    try:
        summary = run_training(_config(), workdir)
    except Interrupted as stop:
        errors.tell(
            f"interrupted: step {stop.step} is saved in {workdir}; the same command resumes"
        )
        sys.exit(128 + stop.signal_number)
    except BaseException as error:
        if many:
            distributed.end_at_once(error)
        raise
    if distributed.is_first():
        print(describe(summary))


def _config() -> "Config":
    """The checked config that the flags give."""
    from transformer_jax.config import resolve

    return resolve(_CONFIG.value)


def config_name() -> str:
    """`big` for --config=configs/big.py, and `big-tiny` for configs/big.py:tiny."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join(filter(None, (Path(path).stem, variant)))


if __name__ == "__main__":
    errors.run_command(main)
