# SPDX-License-Identifier: Apache-2.0
"""Beam search: section 6.1; the length penalty is equation 14 of Wu et al. 2016 (arXiv 1609.08144).

The search knows no model. It asks a function `step` for the logits of the next token, and carries a
cache on the function's behalf: hypotheses replace one another, and what the cache, whose leaves lead
with [B, W], knows of them moves with them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.data.batch import EOS, PAD
from transformer_jax.inference.best_tokens import IMPOSSIBLE, allowed_tokens, log_probs_of
from transformer_jax.inference.moves import assign_places, gather, move

Step = Callable[..., tuple[Array, Any]]  # ids, position, cache[, context] -> logits, cache
_Rows = tuple[Array, Array | None]  # of each sentence: its limit [B], its prefix [B, P]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamResult:
    """The R best hypotheses of each sentence, best first."""

    ids: Any  # [B, R, L] int32: tokens up to and with EOS, then PAD.
    scores: (
        Any  # [B, R] float32: log-probability / length penalty; -inf where there are fewer than R.
    )
    lengths: Any  # [B, R] int32: tokens, EOS included; 0 where there are fewer than R.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchState:
    """What one step of the search hands to the next."""

    position: Any  # [] int32: the place of the token that the next step chooses.
    live_ids: Any  # [B, W, L] int32: hypotheses without EOS, PAD from `position` on.
    live_scores: Any  # [B, W] float32: their log-probabilities; all -inf once the sentence is done.
    best: BeamResult  # The R best hypotheses so far that have taken EOS.
    cache: Any  # Arrays [B, W, ...]: what `step` remembers of the live hypotheses.


def length_penalty(
    length: Int[Array, "*dims"] | int, alpha: Float[Array, ""] | float
) -> Float[Array, "*dims"]:
    """lp(Y) = ((5 + |Y|) / 6)^alpha, where |Y| counts EOS. Scores are log P(Y | X) / lp(Y).

    It stays between 1e-32 and 1e32, so that scores are numbers whatever alpha is.
    """
    penalty = ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha
    return jnp.clip(penalty, 1e-32, 1e32)


def beam_search(
    step: Step,
    cache: Any,
    *,
    beam_size: int,
    max_lengths: Int[Array, " B"],
    length: int,
    alpha: Float[Array, ""] | float = 0.6,
    results: int | None = None,
    prefix: Int[Array, "B P"] | None = None,
    min_length: Int[Array, ""] | int | None = None,
    eos: int = EOS,
    never: tuple[int, ...] = (),
    early_stop: bool = True,
    context: Any = None,
    cache_axis: int = 2,
) -> BeamResult:
    """Search for the translations with the highest length-penalised log-probability.

    At every position the 2W best continuations of a sentence's W hypotheses are looked at. Those
    that end in EOS compete for a place among the R finished ones; of the others the W best live on,
    and there are always W, because at most W of the 2W can end. A hypothesis that reaches its
    sentence's limit takes EOS there, whatever its probability, and before that a prefix's tokens.

    A sentence is done when no live hypothesis can get a better score than the worst of its R
    finished ones: stopping early never changes the result. The search ends when all are done.

    With beam_size=1 this is greedy search: the best token at every position until that is EOS.

    A `context` lets finished sentences leave the batch. The search then begins with a `cache` that
    may be shorter than `length`; when it is full, or three quarters of the sentences are done, those
    that are left are finished by themselves, a quarter of the batch at a time.

    Args:
      step: (ids [B, W], position [], cache) -> (logits [B, W, VOCAB], cache): what follows the
        tokens `ids` of position - 1. At position 0 there is none, and `ids` are meaningless. With a
        context, it is the fourth argument, and B may be smaller than it was.
      cache: any pytree of arrays [B, W, ...]; `step` writes what it wants to remember of a
        position, and reads what it wrote for the positions before.
      beam_size: W.
      max_lengths: each sentence's limit in tokens, EOS included; with 0 it gets no hypothesis.
      length: L, at least the largest of max_lengths.
      alpha: the length penalty's exponent; any real number.
      results: R, by default W. With 1 the search is done sooner.
      prefix: the tokens that every hypothesis of a sentence begins with, then PAD; fewer than
        max_lengths, and without EOS. By default none.
      min_length: EOS is no candidate before so many tokens, a prefix's included, unless the limit is
        reached. Probabilities are as without. By default any hypothesis may end.
      eos: the token that ends a hypothesis.
      never: tokens that no hypothesis has, whatever their probability, which they keep.
      early_stop: False searches on up to the limits.
      context: any pytree of arrays [B, ...]: what `step` knows of the sentences.
      cache_axis: with a context, the axis of the cache's leaves whose places are positions.
    """
    batch, width, kept = max_lengths.shape[0], beam_size, results or beam_size
    leaves = jax.tree.leaves(cache)
    short = min(leaves[0].shape[cache_axis], length) if leaves and context is not None else length
    state = SearchState(
        position=jnp.int32(0),
        live_ids=jnp.full((batch, width, short), PAD, jnp.int32),
        # All hypotheses start alike: only one of them may be continued.
        live_scores=jnp.full((batch, width), IMPOSSIBLE)
        .at[:, 0]
        .set(jnp.where(max_lengths > 0, 0.0, IMPOSSIBLE)),
        best=BeamResult(
            ids=jnp.full((batch, kept, short), PAD, jnp.int32),
            scores=jnp.full((batch, kept), IMPOSSIBLE),
            lengths=jnp.zeros((batch, kept), jnp.int32),
        ),
        cache=cache,
    )
    rows = jnp.minimum(max_lengths, length), prefix

    def advance(
        state: SearchState, rows: _Rows, context: Any, until: int, left: int
    ) -> SearchState:
        """Up to a position, or until no more than `left` sentences are left."""
        limits, prefix = rows
        one_step = partial(
            _advance_greedily if width == 1 else _advance,
            step=step if context is None else partial(_with_context, step, context),
            forced=partial(forced_tokens, prefix=prefix, max_lengths=limits, eos=eos),
            max_lengths=limits,
            min_length=min_length,
            alpha=alpha,
            eos=eos,
            never=never,
            early_stop=early_stop,
            cache_axis=None if context is None else cache_axis,
        )
        return lax.while_loop(
            lambda state: (_alive(state).sum() > left) & (state.position < until), one_step, state
        )

    if context is None:
        return advance(state, rows, None, length, 0).best
    few = -(-batch // 4)
    state = advance(state, rows, context, short, few)
    return _finish(state, rows, context, advance, length, few, cache_axis)


def _with_context(step: Step, context: Any, ids: Array, position: Array, cache: Any) -> Any:
    return step(ids, position, cache, context)


def _alive(state: SearchState) -> Bool[Array, " B"]:
    """Which sentences are not done."""
    return jnp.any(state.live_scores > IMPOSSIBLE, axis=1)


def _finish(
    state: SearchState,
    of_rows: _Rows,
    context: Any,
    advance: Callable[..., SearchState],
    length: int,
    few: int,
    cache_axis: int,
) -> BeamResult:
    """The sentences that are left, `few` at a time, each from the state's position to its end."""

    def longer(leaf: Array, axis: int) -> Array:
        """Room for `length` positions, of zeros, which PAD is, too."""
        more = [(0, 0)] * leaf.ndim
        more[axis] = (0, length - leaf.shape[axis])
        return jnp.pad(leaf, more)

    def some(left: tuple[Array, BeamResult]) -> tuple[Array, BeamResult]:
        alive, best = left
        rows = jnp.argsort(~alive)[:few]  # those that are left, and some that are done

        def part(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[rows], tree)

        begun = SearchState(
            state.position,
            longer(state.live_ids[rows], 2),
            # What was finished in an earlier round is not searched again.
            jnp.where(alive[rows, None], state.live_scores[rows], IMPOSSIBLE),
            part(best),
            jax.tree.map(lambda leaf: longer(leaf[rows], cache_axis), state.cache),
        )
        ended = advance(begun, part(of_rows), part(context), length, 0)
        best = jax.tree.map(lambda all, new: all.at[rows].set(new), best, ended.best)
        return alive.at[rows].set(False), best

    best = dataclasses.replace(state.best, ids=longer(state.best.ids, 2))
    return lax.while_loop(lambda left: jnp.any(left[0]), some, (_alive(state), best))[1]


def _advance(
    state: SearchState,
    *,
    step: Step,
    forced: Callable[[Array], Array],
    max_lengths: Array,
    min_length: Array | int | None,
    alpha: Array | float,
    eos: int,
    never: tuple[int, ...],
    early_stop: bool,
    cache_axis: int | None,
) -> SearchState:
    """One step of the search: every live hypothesis of every sentence gains a token.

    C, the number of candidates, is 2W, or less in a vocabulary of a few words.
    """
    position, width = state.position, state.live_ids.shape[1]
    logits, cache = step(_last_ids(state), position, state.cache)  # [B, W, VOCAB]
    scores, tokens, parents = _candidates(logits, state.live_scores, forced(position), never)
    ended = tokens == eos  # [B, C]
    counts = ended if min_length is None else ended & _may_end(position, max_lengths, min_length)

    best = _merge(
        state.best,
        state.live_ids,
        jnp.where(counts, scores, IMPOSSIBLE) / length_penalty(position + 1, alpha),
        parents,
        position,
        eos,
    )
    live_scores, chosen = lax.top_k(jnp.where(ended, IMPOSSIBLE, scores), width)  # [B, W]
    order = assign_places(jnp.take_along_axis(parents, chosen, axis=1))
    live_scores, chosen = (jnp.take_along_axis(x, order, axis=1) for x in (live_scores, chosen))
    parents, tokens = (jnp.take_along_axis(x, chosen, axis=1) for x in (parents, tokens))  # [B, W]
    live_ids, cache = move(
        state.live_ids, cache, parents, live_scores > IMPOSSIBLE, position, cache_axis
    )
    live_ids = lax.dynamic_update_slice_in_dim(live_ids, tokens[..., None], position, axis=2)
    if early_stop:
        # Log-probabilities only fall, so a hypothesis can at most keep the one that it has; the
        # penalty is most lenient at the limit if alpha > 0, at the next position if alpha < 0.
        lenient = jnp.maximum(
            length_penalty(position + 2, alpha), length_penalty(max_lengths, alpha)
        )  # [B]
        done = live_scores.max(axis=1) / lenient <= best.scores[:, -1]  # [B]
        live_scores = jnp.where(done[:, None], IMPOSSIBLE, live_scores)
    return SearchState(position + 1, live_ids, live_scores, best, cache)


def _may_end(
    position: Int[Array, ""], max_lengths: Int[Array, " B"], min_length: Array | int
) -> Bool[Array, "B 1"]:
    """Whether EOS may be the token at `position`."""
    return ((position >= min_length) | (position + 1 >= max_lengths))[:, None]


def _candidates(
    logits: Float[Array, "B W VOCAB"],
    live_scores: Float[Array, "B W"],
    forced: Int[Array, " B"],
    never: tuple[int, ...],
) -> tuple[Float[Array, "B C"], Int[Array, "B C"], Int[Array, "B C"]]:
    """The 2W best continuations of each sentence: log-probabilities, tokens, hypotheses continued."""
    batch, width = live_scores.shape
    # [B, W, 2W], fewer in a tiny vocabulary
    log_probs, tokens = allowed_tokens(logits, 2 * width, never)
    each = tokens.shape[2]
    scores = (live_scores[..., None] + log_probs).reshape(batch, width * each)
    scores, chosen = lax.top_k(scores, min(2 * width, scores.shape[1]))
    tokens = jnp.take_along_axis(tokens.reshape(batch, width * each), chosen, axis=1)
    parents = chosen // each

    # Where a token is forced every hypothesis continues with it and nothing else.
    is_forced = (forced != PAD)[:, None]  # [B, 1]
    pad = ((0, 0), (0, scores.shape[1] - width))
    only = jnp.pad(live_scores + log_probs_of(logits, forced), pad, constant_values=IMPOSSIBLE)
    scores = jnp.where(is_forced, only, scores)
    tokens = jnp.where(is_forced, forced[:, None], tokens)
    every = jnp.broadcast_to(jnp.arange(width), live_scores.shape)  # [B, W]
    parents = jnp.where(is_forced, jnp.pad(every, pad), parents)
    return scores, tokens, parents


def forced_tokens(
    position: Int[Array, ""],
    *,
    prefix: Int[Array, "B P"] | None,
    max_lengths: Int[Array, " B"],
    eos: int,
) -> Int[Array, " B"]:
    """The only token that a sentence may have at `position`; PAD where it may have any."""
    forced = jnp.where(position + 1 >= max_lengths, eos, PAD)
    if prefix is None:
        return forced
    last = prefix.shape[1] - 1
    given = jnp.where(position <= last, prefix[:, jnp.minimum(position, last)], PAD)
    return jnp.where(given == PAD, forced, given)


def _merge(
    best: BeamResult,
    live_ids: Int[Array, "B W L"],
    scores: Float[Array, "B C"],
    parents: Int[Array, "B C"],
    position: Int[Array, ""],
    eos: int,
) -> BeamResult:
    """The R best of the finished hypotheses and of those that end now (score above -inf)."""
    kept = best.scores.shape[1]
    merged, chosen = lax.top_k(jnp.concatenate([best.scores, scores], axis=1), kept)  # [B, R]
    fresh = (chosen >= kept) & (merged > IMPOSSIBLE)  # [B, R]
    # Where the chosen ones stand in [finished | live]; a fresh one is its parent and EOS.
    stay = jnp.broadcast_to(jnp.arange(kept), best.scores.shape)  # [B, R]
    places = jnp.concatenate([stay, kept + parents], axis=1)  # [B, R + C]
    places = jnp.take_along_axis(places, chosen, axis=1)  # [B, R]
    ids = gather(jnp.concatenate([best.ids, live_ids], axis=1), places)  # [B, R, L]
    here = fresh[..., None] & (jnp.arange(ids.shape[2]) == position)[None, None]  # [B, R, L]
    lengths = gather(jnp.pad(best.lengths, ((0, 0), (0, live_ids.shape[1]))), places)  # [B, R]
    return BeamResult(
        ids=jnp.where(here, eos, ids),
        scores=merged,
        lengths=jnp.where(fresh, position + 1, lengths),
    )


def _advance_greedily(
    state: SearchState,
    *,
    step: Step,
    forced: Callable[[Array], Array],
    max_lengths: Array,
    min_length: Array | int | None,
    alpha: Array | float,
    eos: int,
    never: tuple[int, ...],
    early_stop: bool,
    cache_axis: int | None,
) -> SearchState:
    """A step with W = 1: nothing competes, so nothing is sorted or moved, and EOS ends it."""
    del early_stop, cache_axis  # a single hypothesis has nothing to wait for
    position = state.position
    logits, cache = step(_last_ids(state), position, state.cache)  # [B, 1, VOCAB]
    if min_length is None:
        log_probs, tokens = (entry[..., 0] for entry in allowed_tokens(logits, 1, never))  # [B, 1]
    else:
        log_probs, tokens = allowed_tokens(logits, 2, never)  # [B, 1, 2]
        second = (tokens[..., 0] == eos) & ~_may_end(position, max_lengths, min_length)  # [B, 1]
        log_probs, tokens = (
            jnp.where(second, entry[..., -1], entry[..., 0]) for entry in (log_probs, tokens)
        )
    only = forced(position)  # [B]
    is_forced = (only != PAD)[:, None]  # [B, 1]
    tokens = jnp.where(is_forced, only[:, None], tokens)
    log_probs = jnp.where(is_forced, log_probs_of(logits, only), log_probs)
    scores = state.live_scores + log_probs  # [B, 1]
    live_ids = lax.dynamic_update_slice_in_dim(
        state.live_ids, tokens[..., None], position, axis=2
    )  # [B, 1, L]
    ended = (tokens == eos) & (state.live_scores > IMPOSSIBLE)  # [B, 1]
    penalised = scores / length_penalty(position + 1, alpha)
    best = BeamResult(
        ids=jnp.where(ended[..., None], live_ids, state.best.ids),
        scores=jnp.where(ended, penalised, state.best.scores),
        lengths=jnp.where(ended, position + 1, state.best.lengths),
    )
    return SearchState(position + 1, live_ids, jnp.where(ended, IMPOSSIBLE, scores), best, cache)


def _last_ids(state: SearchState) -> Int[Array, "B W"]:
    """The tokens before `position`."""
    last = jnp.maximum(state.position - 1, 0)
    return lax.dynamic_index_in_dim(state.live_ids, last, axis=2, keepdims=False)
