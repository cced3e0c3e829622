# SPDX-License-Identifier: Apache-2.0
"""How probable given translations are: log P(target | source) of every pair of lines.

    python -m transformer_jax.score --workdir=runs/demo --source=in.en --target=in.de
    python -m transformer_jax.score --workdir=runs/demo --source=in.en --target=in.de --format=jsonl

Writes one line for every pair: the log-probability (natural logarithm) ||| that of every token and of
the end, and with --alignments a third column. --format=jsonl has an object a pair instead. A pair with a
blank side has none ("nan", null). The last line on stderr has the perplexity of all pairs together,
which is that of `evaluate`: exp(-log P / tokens), and compares only models of one vocabulary.

From Python: transformer_jax.Translator.from_workdir("runs/demo").score(["A dog."], ["Ein Hund."])
"""

import contextlib
import math
from collections.abc import Sequence

from absl import flags

from transformer_jax import weights_flags
from transformer_jax.errors import check_stdout, run_command, tell
from transformer_jax.path_flags import define_path

flags.adopt_module_key_flags(weights_flags)  # --help shows them
_SOURCE = define_path("source", "A file, one sentence a line, .gz or not.", required=True)
_TARGET = define_path("target", "Its translation, line by line.", required=True)
_OUTPUT = define_path("output", "Where to write; by default stdout.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "jsonl"], "How to write; see above.")
_ALIGNMENTS = flags.DEFINE_bool(
    "alignments",
    False,
    "Write which word comes from which, as 0-0 1-2 (source-target, from 0; Pharaoh's format). Words are "
    "what any white space separates, as Python's split() has it.",
)


def main(_: Sequence[str]) -> None:
    """Read, score, write."""
    # After the flags: --help need not wait for JAX.
    from transformer_jax import checkpoints, runtime
    from transformer_jax.files import check_writable
    from transformer_jax.inference.encoding import Counts
    from transformer_jax.inference.hypotheses import perplexity_of
    from transformer_jax.inference.lines import Lines
    from transformer_jax.inference.output import write_scores
    from transformer_jax.inference.streaming import Progress, count_all, stream
    from transformer_jax.inference.translator import Translator

    runtime.set_up()
    # What can be wrong is looked at first: reading weights takes longer.
    for workdir in weights_flags.WORKDIR.value:
        checkpoints.load_config(workdir)
    if _OUTPUT.value:
        check_writable(_OUTPUT.value)
    else:
        check_stdout()
    files = [_SOURCE.value, _TARGET.value]
    with contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(Lines(file)) for file in files]
        total = count_all(files)
        translator = Translator.from_workdir(
            weights_flags.WORKDIR.value, weights_flags.CHECKPOINT.value
        )

        def work(first: int, columns: list[list[str]], counts: Counts, done: Progress) -> str:
            scored = translator.score(*columns, alignments=_ALIGNMENTS.value, counts=counts)
            log_probs = [value for entry in scored for value in entry.token_log_probs or ()]
            counts.tokens += len(log_probs)
            counts.log_prob += math.fsum(log_probs)
            done(len(scored))
            return write_scores(scored, first, _FORMAT.value)

        report = stream(
            inputs,
            work,
            output=_OUTPUT.value,
            settings=lambda: {
                "weights": translator.fingerprint(),
                "format": _FORMAT.value,
                "alignments": _ALIGNMENTS.value,
            },
            total=total,
        )
    tell(report.summary(translator.max_length))
    counts = report.counts
    perplexity = perplexity_of(counts.log_prob, counts.tokens)
    tell(
        f"{counts.tokens} tokens, log-probability {counts.log_prob:.4f}, perplexity {perplexity:.4f}"
    )


if __name__ == "__main__":
    run_command(main)
