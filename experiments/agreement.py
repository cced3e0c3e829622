# SPDX-License-Identifier: Apache-2.0
"""How many lines CTranslate2 translates to the same tokens as our beam search, and why others differ.

    python -m experiments.agreement --workdir=runs/multi30k --checkpoint=average --input=test.en

The run's model goes to CTranslate2 by way of `convert --to=huggingface`. Both search in float32 with four
hypotheses and without a length penalty, since theirs is another. A line that differs is printed with both
log-probabilities, computed by our model. Needs the extra `interop`.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from transformer_jax.errors import UserError, run_command

_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder of a trained model.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, average or a step.")
_INPUT = flags.DEFINE_string("input", None, "Sentences, one a line.", required=True)
_LINES = flags.DEFINE_integer("lines", 200, "How many of them.", lower_bound=1)
_BEAM_SIZE = 4


def main(_: Sequence[str]) -> None:
    """Translate with both and count."""
    for module in ("ctranslate2", "torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is missing: pip install -e '.[interop]'")
    # After the flags: --help need not wait for JAX.
    from transformer_jax import runtime
    from transformer_jax.inference.hypotheses import SearchOptions
    from transformer_jax.inference.lines import read_lines
    from transformer_jax.inference.translator import Translator

    runtime.set_up()
    lines = [line for line in read_lines(_INPUT.value) if line.strip()][: _LINES.value]
    translator = Translator.from_workdir(_WORKDIR.value, _CHECKPOINT.value, precision="float32")
    options = SearchOptions(beam_size=_BEAM_SIZE, alpha=0.0)
    ours = [best for best, *_ in translator.search(lines, options)]
    vocabulary = translator.vocabulary
    sources = [vocabulary.pieces_of(ids[:-1]) for ids in vocabulary.encode(lines)]
    theirs = translate_with_ctranslate2(sources, translator.decode.extra_length)
    ids = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    texts = vocabulary.decode([[ids[piece] for piece in pieces] for pieces in theirs])
    differing = [
        number for number, pieces in enumerate(theirs) if pieces != list(ours[number].tokens)
    ]
    scored = translator.score(
        [lines[number] for number in differing], [texts[number] for number in differing]
    )
    for number, other in zip(differing, scored, strict=True):
        print(f"{number}: ours {ours[number].log_prob:.4f} {ours[number].text}")
        print(f"{number}: theirs {other.log_prob:.4f} {texts[number]}")
    print(f"{len(lines) - len(differing)} of {len(lines)} the same")


def translate_with_ctranslate2(sources: Sequence[Sequence[str]], extra: int) -> list[list[str]]:
    """The pieces of each translation, of at most `extra` more than its source has."""
    import ctranslate2

    from transformer_jax.formats import marian

    with tempfile.TemporaryDirectory() as folder:
        exported, converted = Path(folder) / "marian", Path(folder) / "ctranslate2"
        marian.export_folder(_WORKDIR.value, exported, _CHECKPOINT.value)
        ctranslate2.converters.TransformersConverter(str(exported)).convert(str(converted))
        peer = ctranslate2.Translator(str(converted), device="cpu", compute_type="float32")
        return [
            peer.translate_batch(
                [[*pieces, "</s>"]],
                beam_size=_BEAM_SIZE,
                length_penalty=0,
                min_decoding_length=0,
                max_decoding_length=len(pieces) + extra,
            )[0].hypotheses[0]
            for pieces in sources
        ]


if __name__ == "__main__":
    run_command(main)
