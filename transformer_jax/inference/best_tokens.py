# SPDX-License-Identifier: Apache-2.0
"""The most probable of a whole vocabulary, without sorting it."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

IMPOSSIBLE = -jnp.inf
COLUMNS = 128  # see best_tokens; of 64 to 512, within 10 % of the best on a CPU


def best_tokens(
    logits: Float[Array, "B W VOCAB"], count: int
) -> tuple[Float[Array, "B W count"], Int[Array, "B W count"]]:
    """The log-probabilities and ids of the most probable tokens, best first.

    lax.top_k over the vocabulary is slow on a CPU. The `count` largest entries of a matrix stand in
    the `count` columns that have the largest maxima, and finding maxima is fast.
    """
    vocabulary, lead = logits.shape[-1], logits.shape[:2]
    width = _columns(vocabulary)
    rows = vocabulary // width
    total = _log_total(logits)[..., None]  # [B, W, 1]
    if rows < 2 or count > width:
        values, ids = lax.top_k(logits, min(count, vocabulary))
        return values - total, ids
    matrix = _matrix(logits)
    _, columns = lax.top_k(matrix.max(axis=-2), count)  # [B, W, count]
    columns = columns[..., None, :]  # [B, W, 1, count]
    values = jnp.take_along_axis(matrix, columns, axis=-1).reshape(*lead, rows * count)
    first = jnp.arange(rows)[None, None, :, None] * width  # of each row
    ids = (first + columns).reshape(*lead, rows * count)
    whole = rows * width
    if whole < vocabulary:  # What fills no whole row is looked at, too.
        rest = jnp.broadcast_to(jnp.arange(whole, vocabulary), (*lead, vocabulary - whole))
        values = jnp.concatenate([values, logits[..., whole:]], axis=-1)
        ids = jnp.concatenate([ids, rest], axis=-1)
    values, chosen = lax.top_k(values, count)  # [B, W, count]
    return values - total, jnp.take_along_axis(ids, chosen, axis=-1)


def allowed_tokens(
    logits: Float[Array, "B W VOCAB"], count: int, never: tuple[int, ...]
) -> tuple[Float[Array, "B W count"], Int[Array, "B W count"]]:
    """`best_tokens` without those that are never chosen."""
    log_probs, ids = best_tokens(logits, count + len(never))
    if not never:
        return log_probs, ids
    log_probs = jnp.where(jnp.isin(ids, jnp.array(never)), IMPOSSIBLE, log_probs)
    log_probs, chosen = lax.top_k(log_probs, min(count, ids.shape[-1]))
    return log_probs, jnp.take_along_axis(ids, chosen, axis=-1)


def log_probs_of(
    logits: Float[Array, "B W VOCAB"], tokens: Int[Array, " B"]
) -> Float[Array, "B W"]:
    """The log-probabilities of one token a sentence."""
    chosen = jnp.take_along_axis(logits, tokens[:, None, None], axis=-1)[..., 0]
    return chosen - _log_total(logits)


def _log_total(logits: Float[Array, "B W VOCAB"]) -> Float[Array, "B W"]:
    """log of the sum of exp(logits), from the maxima that `best_tokens` needs anyway.

    Whoever needs it computes it, and XLA computes it once.
    """
    peaks = _matrix(logits).max(axis=-2).max(axis=-1)  # [B, W]
    whole = logits.shape[-1] - logits.shape[-1] % _columns(logits.shape[-1])
    if whole < logits.shape[-1]:
        peaks = jnp.maximum(peaks, logits[..., whole:].max(axis=-1))
    return jnp.log(jnp.exp(logits - peaks[..., None]).sum(axis=-1)) + peaks


def _matrix(logits: Float[Array, "B W VOCAB"]) -> Float[Array, "B W rows columns"]:
    """The vocabulary in rows; what fills no whole one is left out."""
    width = _columns(logits.shape[-1])
    whole = logits.shape[-1] - logits.shape[-1] % width
    return logits[..., :whole].reshape(*logits.shape[:2], whole // width, width)


def _columns(vocabulary: int) -> int:
    """About 128 columns; if possible so many that all rows are whole, and none is copied."""
    whole = [width for width in range(64, 257, 8) if vocabulary % width == 0]
    return min(min(whole, key=lambda width: abs(width - COLUMNS), default=COLUMNS), vocabulary)
