# SPDX-License-Identifier: Apache-2.0
"""Translations drawn at random instead of searched for: temperature, top-k, top-p.

Like beam search it knows no model, only a function `step`. What is drawn is a function of (seed, line,
number of the sample, position) and of the logits: neither the batch that a line is in nor the other
lines matter, but for what rounding makes of the logits.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Integer, Key

from transformer_jax.data.batch import EOS, PAD
from transformer_jax.errors import UserError
from transformer_jax.inference.beam_search import BeamResult, Step, forced_tokens, length_penalty


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw a token: from softmax(logits / temperature) of the tokens that remain.

    First only the `top_k` most probable tokens remain (0: all), then of these the fewest that have
    at least the probability `top_p` together (1.0: all), as in Holtzman et al. 2020, section 3.1.

    Raises:
      UserError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise UserError(
                f"temperature={self.temperature} is not allowed; it is above 0 and finite, and a "
                "beam of 1 takes the most probable token"
            )
        if self.top_k < 0:
            raise UserError(
                f"top_k={self.top_k} is not allowed; it is 1 or more, or 0 for all tokens"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p={self.top_p} is not allowed; it is above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is not allowed; it is from 0 to 2^32 - 1")

    def arrays(self) -> tuple[np.uint32, np.float32, np.float32 | None]:
        """(seed, temperature, top_p) for a compiled function; no top_p where all tokens remain."""
        top_p = np.float32(self.top_p) if self.top_p < 1.0 else None
        return np.uint32(self.seed), np.float32(self.temperature), top_p


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Drawn:
    """What one position hands to the next."""

    position: Any  # [] int32: the place of the token that is drawn next.
    ids: Any  # [B, W, L] int32: PAD from `position` on, and behind EOS.
    log_probs: Any  # [B, W] float32: the model's own, whatever the temperature.
    lengths: Any  # [B, W] int32: tokens, EOS included; 0 until it is drawn.
    cache: Any


def sample(
    step: Step,
    cache: Any,
    *,
    keys: Key[Array, " B"],
    samples: int,
    temperature: Float[Array, ""] | float = 1.0,
    top_k: int = 0,
    top_p: Float[Array, ""] | float | None = None,
    max_lengths: Int[Array, " B"],
    length: int,
    alpha: Float[Array, ""] | float = 0.6,
    prefix: Int[Array, "B P"] | None = None,
    min_length: Int[Array, ""] | int | None = None,
    eos: int = EOS,
    never: tuple[int, ...] = (),
) -> BeamResult:
    """W independent translations of each sentence, in the order in which they are drawn.

    Args:
      step: as for `beam_search`, W being the number of samples.
      cache: as for `beam_search`.
      keys: each sentence's randomness, see `line_keys`.
      samples: W.
      temperature: see `Sampling`.
      top_k: see `Sampling`.
      top_p: see `Sampling`; None: all tokens, and nothing is sorted.
      max_lengths: each sentence's limit in tokens, EOS included, where EOS is taken.
      length: L, at least the largest of max_lengths.
      alpha: scores are the model's log-probability (at temperature 1, of all tokens) over
        `length_penalty`.
      prefix: as for `beam_search`.
      min_length: as for `beam_search`; the limit's EOS is taken all the same.
      eos: the token that ends a translation.
      never: as for `beam_search`.
    """
    batch = max_lengths.shape[0]
    limits = jnp.minimum(max_lengths, length)
    each = jnp.arange(samples)
    sample_keys = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(each))(keys)

    def draw(state: _Drawn) -> _Drawn:
        position = state.position
        last = jnp.maximum(position - 1, 0)
        ids = lax.dynamic_index_in_dim(state.ids, last, axis=2, keepdims=False)  # [B, W]
        logits, cache = step(ids, position, state.cache)  # [B, W, VOCAB]
        position_keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, position)))(
            sample_keys
        )
        allowed = logits.at[..., list(never)].set(-jnp.inf) if never else logits
        if min_length is not None:
            early_end = (position < min_length) & (jnp.arange(logits.shape[-1]) == eos)  # [VOCAB]
            allowed = jnp.where(early_end, -jnp.inf, allowed)
        tokens = draw_tokens(position_keys, allowed / temperature, top_k=top_k, top_p=top_p)
        forced = forced_tokens(position, prefix=prefix, max_lengths=limits, eos=eos)[:, None]
        tokens = jnp.where(forced != PAD, forced, tokens)  # [B, W]
        live = (state.lengths == 0) & (limits > 0)[:, None]  # [B, W]
        gains = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        return _Drawn(
            position=position + 1,
            ids=lax.dynamic_update_slice_in_dim(
                state.ids, jnp.where(live, tokens, PAD)[..., None], position, axis=2
            ),
            log_probs=state.log_probs + jnp.where(live, gains, 0.0),
            lengths=jnp.where(live & (tokens == eos), position + 1, state.lengths),
            cache=cache,
        )

    nothing = _Drawn(
        position=jnp.int32(0),
        ids=jnp.full((batch, samples, length), PAD, jnp.int32),
        log_probs=jnp.zeros((batch, samples)),
        lengths=jnp.zeros((batch, samples), jnp.int32),
        cache=cache,
    )
    drawn = lax.while_loop(
        lambda state: jnp.any((state.lengths == 0) & (limits > 0)[:, None]), draw, nothing
    )
    scores = drawn.log_probs / length_penalty(drawn.lengths, alpha)
    return BeamResult(drawn.ids, jnp.where(drawn.lengths > 0, scores, -jnp.inf), drawn.lengths)


def line_keys(seed: Integer[Array, ""] | int, lines: Integer[Array, " B"]) -> Key[Array, " B"]:
    """The randomness of each line, by its number in the whole text."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(lines)


def draw_tokens(
    keys: Key[Array, "B W"],
    logits: Float[Array, "B W VOCAB"],
    *,
    top_k: int = 0,
    top_p: Float[Array, ""] | float | None = None,
) -> Int[Array, "B W"]:
    """One token from each softmax, restricted as `Sampling` says."""
    draw = jax.vmap(jax.vmap(jax.random.categorical))
    vocabulary = logits.shape[-1]
    if top_p is None and not 0 < top_k < vocabulary:
        return draw(keys, logits)
    most = min(top_k or vocabulary, vocabulary)
    logits, ids = lax.top_k(logits, most)  # [B, W, most], best first
    if top_p is not None:
        probabilities = jax.nn.softmax(logits)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # what stands before each
        # The first always remains, however little rounding leaves of its "before".
        remains = (before < top_p).at[..., 0].set(True)
        logits = jnp.where(remains, logits, -jnp.inf)
    return jnp.take_along_axis(ids, draw(keys, logits)[..., None], axis=-1)[..., 0]
