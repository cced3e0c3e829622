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

from transformer_jax import search_flags
from transformer_jax.errors import run_command

flags.adopt_module_key_flags(search_flags)  # --help shows them
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
    checkpoints.load_config(search_flags.WORKDIR.value)
    if _OUTPUT.value:
        check_writable(_OUTPUT.value)
    if not _INPUT.value and sys.stdin.isatty():
        print("reading from the keyboard; Ctrl-D ends the text", file=sys.stderr)
    lines = read_lines(_INPUT.value)
    translations = Translator.from_workdir(
        search_flags.WORKDIR.value, search_flags.CHECKPOINT.value
    ).translate(
        lines,
        beam_size=search_flags.BEAM_SIZE.value,
        alpha=search_flags.ALPHA.value,
        progress=True,
    )
    if _OUTPUT.value:
        write_lines(_OUTPUT.value, translations)
    else:
        sys.stdout.buffer.write("".join(f"{line}\n" for line in translations).encode())


if __name__ == "__main__":
    run_command(main)
