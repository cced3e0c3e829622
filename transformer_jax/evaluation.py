# SPDX-License-Identifier: Apache-2.0
"""Score a trained model: what `python -m transformer_jax.evaluate` and notebooks call."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.config import Config
from transformer_jax.data.batch import EOS, Batch
from transformer_jax.data.pipeline import read_text
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.inference.encoding import encode_pairs
from transformer_jax.inference.forced import pair_batches
from transformer_jax.inference.hypotheses import perplexity
from transformer_jax.inference.lines import read_lines, write_lines
from transformer_jax.inference.scores import check_tokenizer, score
from transformer_jax.inference.translator import Translator
from transformer_jax.training.loss import Means
from transformer_jax.training.sharding import batch_sharding, batch_ways, spread
from transformer_jax.training.step import Params, make_eval_step

log = logging.getLogger(__name__)

_BATCH_TOKENS = 4096  # positions a side of a batch
_LOGITS_CHUNK = 1024  # the logits of so many tokens exist at a time


Likelihood = Callable[..., Means]


@dataclasses.dataclass(frozen=True)
class Text:
    """What to score, and where its translations go."""

    sources: list[str]
    references: list[list[str]]  # by each translator a list, with a line for every source
    split: str | None = None  # None: a pair of files, whose translations are not kept


def evaluate(
    workdir: str | Path | Sequence[str | Path],
    text: Text,
    *,
    checkpoint: str | int | None = None,
    beam_size: int | None = None,
    alpha: float | None = None,
    precision: str | None = None,
    tokenize: str = "13a",
    lowercase: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Translate and score; what the command prints.

    Several run folders or checkpoints are an ensemble, see `Translator.from_workdir`; its translations
    go to the first folder, if that can be written to. `precision` is that of the search; the perplexity
    is the model's own, of the first references.

    Raises:
      UserError: no such run folder, checkpoint or tokenizer, or nothing to score.
    """
    start = time.perf_counter()
    check_tokenizer(tokenize)
    translator = Translator.from_workdir(workdir, checkpoint, precision=precision)
    translations = translator.translate(
        text.sources, beam_size=beam_size, alpha=alpha, progress=progress
    )
    scores = score(translations, *text.references, tokenize=tokenize, lowercase=lowercase)
    name = "+".join(translator.checkpoints)
    steps = name.replace("average.", "")
    if text.split:
        first = workdir if isinstance(workdir, str | Path) else workdir[0]
        try:
            write_translations(Path(first), text.split, name, translations)
        except UserError as error:
            log.warning("the translations are not kept: %s", error)
    total_perplexity = perplexity(translator.score(text.sources, text.references[0]))
    return {
        **scores,
        "perplexity": round(total_perplexity, 4) if math.isfinite(total_perplexity) else None,
        "checkpoint": name,
        "step": int(steps) if steps.isdecimal() else steps,
        "seconds": round(time.perf_counter() - start, 1),
    }


def make_likelihood(config: Config, vocabulary: Vocabulary, mesh: Mesh) -> Likelihood:
    """A function (weights, sources, references) -> means over the references' tokens.

    Its perplexity is exp(-log P / tokens) of the references given the sources: table 3's PPL, per
    word-piece. Pairs with a blank side are left out (NaN if none is left); what is longer than
    config.data.max_length is cut. What its fourth argument, if given, raises before a batch ends it.
    """
    train = dataclasses.replace(config.train, logits_chunk=_LOGITS_CHUNK)
    eval_step = make_eval_step(dataclasses.replace(config, train=train), mesh)

    def batches(sources: list[str], references: list[str]) -> Iterator[Batch]:
        pairs = encode_pairs(vocabulary, sources, references, config.data.max_length)
        pairs = [pair for pair in pairs if [EOS] not in pair]
        for group in pair_batches(pairs, _BATCH_TOKENS, rows_multiple=batch_ways(mesh)):
            yield group.batch

    def likelihood(
        params: Params,
        sources: list[str],
        references: list[str],
        before_batch: Callable[[], None] = lambda: None,
    ) -> Means:
        sums = []
        for batch in batches(sources, references):
            before_batch()
            sums.append(eval_step(params, spread(batch, batch_sharding(mesh))))
        return Means.of(sums)

    return likelihood


def write_translations(workdir: Path, split: str, step: int | str, lines: list[str]) -> None:
    """`translations/<split>.<step>.txt` of the run folder; of many processes the first one writes it.

    Raises:
      UserError: it cannot be written.
    """
    if jax.process_index():
        return
    folder = workdir / "translations"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    write_lines(folder / f"{split}.{step}.txt", lines)


def load_text(
    workdir: str | Path,
    split: str,
    source: str | Path | None = None,
    reference: str | Path | Sequence[str | Path] | None = None,
) -> Text:
    """The text of a file and of its references, or else of a split of the run's own data.

    Raises:
      UserError: a file is missing or not UTF-8, or the numbers of lines differ.
    """
    files = [reference] if isinstance(reference, str | Path) else list(reference or ())
    if bool(source) != bool(files):
        raise UserError("--source and --reference go together; give both or neither")
    if not source:
        text = read_text(Path(workdir), split)
        if text is None:
            raise UserError(
                f"{workdir} has no {split} split; give files with --source and --reference"
            )
        sources, references = text
        return Text(sources, [references], split)
    sources, every = read_lines(source), [read_lines(file) for file in files]
    for file, lines in zip(files, every, strict=True):
        if len(sources) != len(lines):
            raise UserError(
                f"{source} has {len(sources)} lines and {file} has {len(lines)}; "
                "line n of one must be the translation of line n of the other"
            )
    if not sources:
        raise UserError(f"{source} is empty; there is nothing to score")
    return Text(sources, every)
