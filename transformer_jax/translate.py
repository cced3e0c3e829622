# SPDX-License-Identifier: Apache-2.0
"""Translate text with a trained model: one line out for every line in, in the same order.

    echo "A dog runs." | python -m transformer_jax.translate --workdir=runs/demo
    python -m transformer_jax.translate --workdir=runs/demo --input=in.txt --output=out.txt

Write one sentence a line, in UTF-8; gzip is unpacked. Empty lines stay empty; very long ones are cut, and
counted in the last line on stderr. A text may be of any length: it is read and written in parts. What
--output names appears when it is complete; until then it is FILE.partial, and the same command goes on
where a killed one stopped. A link is followed; a named pipe or a device gets every part as it is made.

At a keyboard every line is answered at once. From a pipe lines are translated together, up to 8,192 of
them, as long as the next comes within half a second; --interactive waits for none.

Columns, where more than the translation is asked for, have " ||| " between them: number of the source
from 0 (--n_best), translation, score (--n_best, --scores), log-probability, those of the tokens and of
the end (--scores), alignment (--alignments). A translation's own ||| is &#124;&#124;&#124; there, as
Moses writes it. --format=jsonl has an object a translation instead, and its text as it is.

From Python: transformer_jax.Translator.from_workdir("runs/demo").translate(["A dog runs."])
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from transformer_jax import search_flags, weights_flags
from transformer_jax.errors import UserError, check_stdout, run_command, tell
from transformer_jax.path_flags import define_path

if TYPE_CHECKING:
    from transformer_jax.inference.hypotheses import SearchOptions

for _module in (weights_flags, search_flags):
    flags.adopt_module_key_flags(_module)  # --help shows them
_INPUT = define_path("input", "The file to translate; by default stdin.")
_OUTPUT = define_path("output", "Where to write; by default stdout.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "jsonl"], "How to write; see above.")
_N_BEST = flags.DEFINE_integer(
    "n_best",
    1,
    "How many translations of each line, best first, no text twice; at most beam_size, and fewer where "
    "its hypotheses have fewer texts. With --sample: samples, as they are drawn.",
    lower_bound=1,
)
_SCORES = flags.DEFINE_bool(
    "scores",
    False,
    "Write the score (log-probability / length penalty), the log-probability, and that of every "
    "token.",
)
_ALIGNMENTS = flags.DEFINE_bool(
    "alignments",
    False,
    "Write which word comes from which, as 0-0 1-2 (source-target, from 0; Pharaoh's format): where "
    "the cross-attention of the last two layers looks most, all heads together. Words are what any white "
    "space separates, as Python's split() has it.",
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "At most so many tokens in a translation, its end not counted, besides the usual limit, which is "
    "the source's and config.decode.extra_length more.",
    lower_bound=1,
)
_MIN_LENGTH = flags.DEFINE_integer(
    "min_length",
    1,
    "At least so many tokens in a translation, its end not counted, unless the limit is lower. With 0 "
    "the search may find that no translation of a line is the best.",
    lower_bound=0,
)
_PREFIX_FILE = define_path(
    "prefix_file",
    "A file with a line for each line of the input: what its translation begins with, as it stands "
    "there; blank for none.",
)
_SAMPLE = flags.DEFINE_bool(
    "sample",
    False,
    "Draw translations at random, as probable as the model says, instead of searching for the best. "
    "The same seed draws the same for the same line number.",
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Of --sample: below 1 prefers what is probable, above 1 what is not."
)
_TOP_K = flags.DEFINE_integer(
    "top_k", 0, "Of --sample: only the so many most probable tokens; 0: all.", lower_bound=0
)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Of --sample: only the most probable tokens that have so much of it together."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of --sample.", lower_bound=0)
_INTERACTIVE = flags.DEFINE_bool(
    "interactive",
    None,
    "Answer every line of stdin at once; by default where stdin is a keyboard.",
)
_PIPE_PATIENCE = 0.5  # seconds that a pipe may pause before what came is translated


def main(_: Sequence[str]) -> None:
    """Read, translate, write."""
    _check_flags()
    # After the flags: --help need not wait for JAX.
    from transformer_jax import checkpoints, runtime
    from transformer_jax.files import check_writable
    from transformer_jax.inference.encoding import Counts
    from transformer_jax.inference.lines import Lines
    from transformer_jax.inference.output import write_translations
    from transformer_jax.inference.streaming import Progress, count_all, stream
    from transformer_jax.inference.translator import Translator

    runtime.set_up()
    options = _options()
    # What can be wrong is looked at first: reading weights takes longer.
    configs = [checkpoints.load_config(workdir) for workdir in weights_flags.WORKDIR.value]
    options.width(configs[0].decode)
    if _OUTPUT.value:
        check_writable(_OUTPUT.value)
    else:
        check_stdout()
    files = [_INPUT.value, *([_PREFIX_FILE.value] if _PREFIX_FILE.value else [])]
    with contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(Lines(file, patience=_patience(file))) for file in files]
        total = count_all(files)
        translator = Translator.from_workdir(
            weights_flags.WORKDIR.value,
            weights_flags.CHECKPOINT.value,
            precision=search_flags.PRECISION.value,
        )
        if not _INPUT.value and sys.stdin.isatty():
            tell("reading from the keyboard; Ctrl-D ends the text")

        def work(first: int, columns: list[list[str]], counts: Counts, done: Progress) -> str:
            lines, *prefixes = columns
            found = translator.search(
                lines,
                options,
                prefixes=prefixes[0] if prefixes else None,
                first_line=first,
                counts=counts,
                after_batch=done,
            )
            return write_translations(found, first, options, _FORMAT.value)

        report = stream(
            inputs,
            work,
            output=_OUTPUT.value,
            settings=lambda: {
                "weights": translator.fingerprint(),
                "precision": translator.precision,
                "format": _FORMAT.value,
                "decode": dataclasses.asdict(translator.decode),
                **dataclasses.asdict(options),
            },
            total=total,
        )
    tell(report.summary(translator.max_length))


def _check_flags() -> None:
    """What no single flag can tell."""
    if not _SAMPLE.value:
        for flag in (_TEMPERATURE, _TOP_K, _TOP_P, _SEED):
            if flag.present:
                raise UserError(
                    f"--{flag.name}={flag.value} has no meaning without --sample; add it"
                )
    if _INTERACTIVE.value and (_INPUT.value or _OUTPUT.value):
        raise UserError("--interactive is for stdin and stdout; leave out --input and --output")


def _options() -> "SearchOptions":
    """What the flags ask for."""
    from transformer_jax.inference.hypotheses import SearchOptions
    from transformer_jax.inference.sampling import Sampling

    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _SEED.value)
    return SearchOptions(
        beam_size=search_flags.BEAM_SIZE.value,
        alpha=search_flags.ALPHA.value,
        n_best=_N_BEST.value,
        max_length=_MAX_LENGTH.value,
        min_length=_MIN_LENGTH.value,
        sampling=sampling if _SAMPLE.value else None,
        scores=_SCORES.value,
        alignments=_ALIGNMENTS.value,
    )


def _patience(file: str | None) -> float | None:
    """How long to wait for more lines when there are some: see `Lines`."""
    from transformer_jax.files import is_stream

    if file or (_OUTPUT.value and not is_stream(Path(_OUTPUT.value))):
        return None  # nobody waits for an answer, and chunks should be the same every time
    interactive = sys.stdin.isatty() if _INTERACTIVE.value is None else _INTERACTIVE.value
    return 0.0 if interactive else _PIPE_PATIENCE


if __name__ == "__main__":
    run_command(main)
