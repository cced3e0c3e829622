# SPDX-License-Identifier: Apache-2.0
"""What is asked of a translator, and what it answers."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from transformer_jax.config import DecodeConfig
from transformer_jax.errors import UserError
from transformer_jax.inference.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How to look for translations, and what to say of them.

    Raises:
      UserError: a value out of its range.
    """

    beam_size: int | None = None  # W; 1 is greedy search. None: the run's config.decode
    alpha: float | None = None  # the length penalty's exponent. None: the run's config.decode
    n_best: int = (
        1  # how many translations of each line, of different texts, W at most; or how many samples
    )
    max_length: int | None = (
        None  # at most so many tokens, EOS not counted, besides the usual limit
    )
    sampling: Sampling | None = None  # draw instead of searching
    scores: bool = False  # the log-probability of every token, too
    alignments: bool = False  # words of the source to words of the translation
    min_length: int = 1  # tokens, EOS not counted; a line's limit wins. 0: it may come out empty

    def __post_init__(self) -> None:
        if self.beam_size is not None and self.beam_size < 1:
            raise UserError(
                f"beam_size={self.beam_size} is too small; it is 1 (greedy search) or more"
            )
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise UserError(f"alpha={self.alpha} is no length penalty; 0.6 is usual, 0.0 is none")
        if self.n_best < 1:
            raise UserError(f"n_best={self.n_best} is too small; it is 1 or more")
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length={self.max_length} is too small; it is 1 or more")
        if self.min_length < 0:
            raise UserError(f"min_length={self.min_length} is too small; it is 0 or more")
        if self.max_length is not None and self.min_length > self.max_length:
            raise UserError(
                f"min_length={self.min_length} is more than max_length={self.max_length}; make it that or less"
            )
        if self.sampling is not None and self.beam_size is not None:
            raise UserError(f"beam_size={self.beam_size} has no meaning in sampling; leave it out")

    def width(self, decode: DecodeConfig) -> int:
        """W of a search, or how many samples, of a run with these settings.

        Raises:
          UserError: more translations are wanted than the beam keeps.
        """
        if self.sampling is not None:
            return self.n_best
        width = decode.beam_size if self.beam_size is None else self.beam_size
        if self.n_best > width:
            raise UserError(
                f"n_best={self.n_best} is more than the beam keeps, beam_size={width}; "
                f"use beam_size={self.n_best} or more"
            )
        return width


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A translation, and what the model says of it."""

    text: str
    tokens: tuple[str, ...]  # its pieces, without EOS
    score: float  # log_prob / length penalty: what a search compares
    log_prob: float  # log P(tokens, EOS | source); NaN of a forced pair with a blank side
    token_log_probs: tuple[float, ...] | None = None  # of each piece and, last, of EOS
    alignment: tuple[tuple[int, int], ...] | None = None  # (source word, target word), from 0

    @classmethod
    def blank(cls, options: SearchOptions) -> "Hypothesis":
        """The translation of a line without text, as certain as it is short."""
        return cls(
            "", (), 0.0, 0.0, () if options.scores else None, () if options.alignments else None
        )


def perplexity(hypotheses: Iterable[Hypothesis]) -> float:
    """exp(-log P / tokens) over the tokens of all, EOS included; NaN if there are none.

    They need their token_log_probs; pairs with a blank side have none, and do not count.
    """
    log_probs = [value for entry in hypotheses for value in entry.token_log_probs or ()]
    return perplexity_of(math.fsum(log_probs), len(log_probs))


def perplexity_of(log_prob: float, tokens: int) -> float:
    """exp(-log P / tokens); inf where that is too large for a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(-np.float64(log_prob) / tokens)) if tokens else math.nan
