# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF, as sacrebleu computes them."""

from collections.abc import Sequence
from typing import TypedDict

from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.errors import UserError, check_lines

RESAMPLED = 10_000_000  # sentences that all resamples together may have, to bound the memory


class Scores(TypedDict):
    """What `score` says of a set of translations."""

    bleu: float
    bleu_interval: list[float] | None  # 95 %, by bootstrap: [low, high]
    chrf: float
    signature: str  # of BLEU
    chrf_signature: str
    sentences: int


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *others: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
    bootstrap: int = 1000,
) -> Scores:
    """Corpus BLEU and chrF2 of hypotheses against one reference each, or several.

    Args:
      hypotheses: translations.
      references: as many, each of the line of the same number.
      others: further references of the lines, if there are several.
      tokenize: sacrebleu's name for what splits words; "none" for text that is split already.
      lowercase: ignore case.
      bootstrap: resamples for the interval, fewer if there are more than 10,000 sentences; 0: none.

    Raises:
      UserError: an unknown or unusable tokenizer, unequal numbers of lines, none, or what is no str.
    """
    hypotheses = check_lines("hypotheses", hypotheses)
    every = [check_lines("references", each) for each in (references, *others)]
    for each in every:
        if len(hypotheses) != len(each):
            raise UserError(
                f"{len(hypotheses)} translations cannot be scored with {len(each)} references; "
                "give one reference a line"
            )
    if not hypotheses:
        raise UserError("there are no sentences to score; give files with at least one line")
    bleu, chrf = _bleu(tokenize, lowercase), CHRF(lowercase=lowercase)
    resamples = max(2, min(bootstrap, RESAMPLED // len(hypotheses))) if bootstrap > 1 else 1
    result = bleu.corpus_score(hypotheses, every, n_bootstrap=resamples)
    interval = None
    if resamples > 1:
        interval = [round(result._mean - result._ci, 4), round(result._mean + result._ci, 4)]
    return Scores(
        bleu=round(result.score, 4),
        bleu_interval=interval,
        chrf=round(chrf.corpus_score(hypotheses, every).score, 4),
        signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        sentences=len(hypotheses),
    )


def check_tokenizer(name: str) -> None:
    """Raises: UserError, unless sacrebleu has this tokenizer, and what it needs is there."""
    _bleu(name, lowercase=False)


def _bleu(tokenize: str, lowercase: bool) -> BLEU:
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(f"--tokenize={tokenize} is unknown; allowed: {', '.join(BLEU.TOKENIZERS)}")
    try:
        return BLEU(tokenize=tokenize, lowercase=lowercase)
    except (ImportError, RuntimeError, OSError) as error:  # it needs a package or a download
        reason = " ".join(str(error).split())
        raise UserError(f"--tokenize={tokenize} does not work here: {reason}") from error
