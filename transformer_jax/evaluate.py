# SPDX-License-Identifier: Apache-2.0
"""Score a trained model: BLEU, chrF and perplexity, as one line of JSON on stdout.

    python -m transformer_jax.evaluate --workdir=runs/demo
    python -m transformer_jax.evaluate --workdir=runs/demo --source=new.en --reference=new.de

The first scores the run's test split and writes the translations to the (first) run folder,
as translations/<split>.<step>.txt, with "average." before an average's step; the second scores any pair
of files, one sentence a line, in UTF-8, .gz or not. Where several people have translated the source, give a
--reference for each: BLEU and chrF then count what any of them wrote, as is usual for them.

BLEU is sacrebleu's, with its signature and a 95 % bootstrap interval; perplexity is that of the
(first) reference's tokens, without label smoothing, and compares only models of one vocabulary.
"""

import json
from collections.abc import Sequence

from absl import flags

from transformer_jax import search_flags, weights_flags
from transformer_jax.errors import run_command
from transformer_jax.path_flags import define_path, define_paths

for _module in (weights_flags, search_flags):
    flags.adopt_module_key_flags(_module)  # --help shows them
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "validation"], "Which split of the run's own data to score."
)
_SOURCE = define_path("source", "A file to translate, instead of a split.")
_REFERENCE = define_paths(
    "reference",
    "Its translation by a person, line by line; several if the flag is repeated. The perplexity is that "
    "of the first.",
)
_TOKENIZE = flags.DEFINE_string(
    "tokenize",
    "13a",
    "How sacrebleu splits words: 13a for raw text, none for text that is tokenised already, "
    "char, intl, zh, ja-mecab ...",
)
_LOWERCASE = flags.DEFINE_bool("lowercase", False, "Ignore the difference of A and a.")


def main(_: Sequence[str]) -> None:
    """Score what the flags name."""
    # After the flags: --help need not wait for JAX.
    from transformer_jax import checkpoints, runtime
    from transformer_jax.evaluation import evaluate, load_text

    runtime.set_up()
    for workdir in weights_flags.WORKDIR.value:
        checkpoints.load_config(workdir)  # the first thing that can be wrong
    result = evaluate(
        weights_flags.WORKDIR.value,
        load_text(weights_flags.WORKDIR.value[0], _SPLIT.value, _SOURCE.value, _REFERENCE.value),
        checkpoint=weights_flags.CHECKPOINT.value,
        beam_size=search_flags.BEAM_SIZE.value,
        alpha=search_flags.ALPHA.value,
        precision=search_flags.PRECISION.value,
        tokenize=_TOKENIZE.value,
        lowercase=_LOWERCASE.value,
        progress=True,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    run_command(main)
