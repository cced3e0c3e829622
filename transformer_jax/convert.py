# SPDX-License-Identifier: Apache-2.0
"""Bring models from and to the formats of other tools.

    python -m transformer_jax.convert --from=huggingface --input=opus-mt-en-de --workdir=runs/opus
    python -m transformer_jax.convert --to=huggingface --workdir=runs/demo --output=demo-marian
    python -m transformer_jax.convert --to=stablehlo --workdir=runs/demo --output=demo-stablehlo

huggingface is the folder of a MarianMTModel, such as the Opus-MT models; what comes from it is a run
folder like any other, which translate and evaluate read, and from which main trains on with
--config.train.init_from. CTranslate2 converts the folder that --to=huggingface writes. stablehlo is
compiled code with its weights, which needs JAX but not this package; --platforms says for what devices.
"""

from collections.abc import Sequence

from absl import flags

from transformer_jax.errors import UserError, run_command
from transformer_jax.path_flags import define_path

_FROM = flags.DEFINE_enum("from", None, ["huggingface"], "The format of --input.")
_TO = flags.DEFINE_enum("to", None, ["huggingface", "stablehlo"], "The format of --output.")
_INPUT = define_path("input", "The folder to read, with --from.")
_OUTPUT = define_path("output", "The folder to write, with --to.")
_WORKDIR = define_path(
    "workdir", "The run folder: made with --from, read with --to.", required=True
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "With --to, which weights: latest, best, average or a step. By default the average, unless there is "
    "none or a checkpoint is newer; then the latest.",
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "With --to=stablehlo: cpu, cuda, rocm, tpu."
)


def main(_: Sequence[str]) -> None:
    """Convert, and say where the result is."""
    if bool(_FROM.value) == bool(_TO.value):
        raise UserError("give either --from, with --input, or --to, with --output")
    there = _INPUT.value if _FROM.value else _OUTPUT.value
    if not there:
        raise UserError(
            "--from needs --input, the folder to read; --to needs --output, one to write"
        )
    # After the flags: --help need not wait for JAX.
    from transformer_jax import runtime
    from transformer_jax.formats import marian, stablehlo

    runtime.set_up()
    workdir, checkpoint = _WORKDIR.value, _CHECKPOINT.value
    if _FROM.value:
        marian.import_folder(there, workdir)
    elif _TO.value == "huggingface":
        marian.export_folder(workdir, there, checkpoint)
    else:
        stablehlo.export_folder(workdir, there, checkpoint, platforms=_PLATFORMS.value)
    print(workdir if _FROM.value else there)


if __name__ == "__main__":
    run_command(main)
