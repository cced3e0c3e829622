# SPDX-License-Identifier: Apache-2.0
"""Translate text with a trained model: one line out for every line in, in the same order.

    echo "A dog runs." | python -m transformer_jax.translate --workdir=runs/demo
    python -m transformer_jax.translate --workdir=runs/demo --input=in.txt --output=out.txt

Write one sentence a line, in UTF-8. Empty lines stay empty; very long ones are cut, with a warning.
From Python: transformer_jax.Translator.from_workdir("runs/demo").translate(["A dog runs."])
"""

import sys
from collections.abc import Sequence

from absl import flags

from transformer_jax.errors import run_command

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run folder that training wrote.", required=True
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "latest",
    "Which weights: latest, best (by BLEU on the validation split), average (written by "
    "python -m transformer_jax.average), or a step, such as 2000.",
)
_BEAM_SIZE = flags.DEFINE_integer(
    "beam_size",
    None,
    "Hypotheses that are kept at a time: 1 is greedy search and fast; the paper uses 4. "
    "By default the run's config.decode.beam_size.",
    lower_bound=1,
)
_ALPHA = flags.DEFINE_float(
    "alpha",
    None,
    "Exponent of the length penalty: larger values prefer longer translations; the paper uses "
    "0.6. By default the run's config.decode.alpha.",
)
_INPUT = flags.DEFINE_string("input", None, "The file to translate; by default stdin.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write; by default stdout.")


def main(_: Sequence[str]) -> None:
    """Read, translate, write."""
    # After the flags: --help need not wait for JAX.
    from transformer_jax import checkpoints, runtime
    from transformer_jax.inference.lines import check_writable, read_lines, write_lines
    from transformer_jax.inference.translator import Translator

    runtime.set_up()
    # What can be wrong is looked at first: reading weights takes longer.
    checkpoints.load_config(_WORKDIR.value)
    if _OUTPUT.value:
        check_writable(_OUTPUT.value)
    if not _INPUT.value and sys.stdin.isatty():
        print("reading from the keyboard; Ctrl-D ends the text", file=sys.stderr)
    lines = read_lines(_INPUT.value)
    translations = Translator.from_workdir(_WORKDIR.value, _CHECKPOINT.value).translate(
        lines,
        beam_size=_BEAM_SIZE.value,
        alpha=_ALPHA.value,
        progress=True,
    )
    if _OUTPUT.value:
        write_lines(_OUTPUT.value, translations)
    else:
        sys.stdout.buffer.write("".join(f"{line}\n" for line in translations).encode())


if __name__ == "__main__":
    run_command(main)
