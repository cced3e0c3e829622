# SPDX-License-Identifier: Apache-2.0
"""Average the weights of a run's last checkpoints, as the paper does for its results (section 6.1).

    python -m transformer_jax.average --workdir=runs/base --last=5

Training does so at its end, with config.train.keep. Afterwards translate, evaluate and score read the
average, until the run goes on; --checkpoint=average means it in any case.
"""

from collections.abc import Sequence

from absl import flags

from transformer_jax.errors import run_command
from transformer_jax.path_flags import define_path

_WORKDIR = define_path("workdir", "The run folder that training wrote.", required=True)
_LAST = flags.DEFINE_integer(
    "last", 5, "How many checkpoints; the paper: 5 for base, 20 for big.", lower_bound=1
)


def main(_: Sequence[str]) -> None:
    """Average and say where the result is."""
    # After the flags: --help need not wait for JAX.
    from transformer_jax import checkpoints, runtime

    runtime.set_up()
    print(checkpoints.average(_WORKDIR.value, _LAST.value))


if __name__ == "__main__":
    run_command(main)
