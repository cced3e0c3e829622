# SPDX-License-Identifier: Apache-2.0
"""Counter-based random bits: a dropout mask is a pure function of where an entry stands.

    bits = hash(seed, row, head, query, key)

There is no generator state. Every implementation, backend and mesh drops the same entries, as long
as `row` is the row's number in the *global* batch, and a backward pass recomputes the mask instead
of storing it. The hash is a chain of the 32-bit finaliser "lowbias32" (two multiplications, three
shifts), so that the innermost index costs a handful of integer operations an entry.
"""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray, UInt32

from attention_kernels.checks import check_floats, check_integers, check_rate, kind_of

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive counters over the whole range

Seed = int | Integer[Array, ""] | PRNGKeyArray


def fold_in(seed: Any, data: Any) -> UInt32[Array, ""]:
    """Another seed: of a step, a layer, a place in it, a member of an ensemble.

    One seed is one mask. Calls with the same seed, rows, heads and lengths drop the same entries, so
    each layer of a model folds in its number, and each step its own:

        seed = fold_in(fold_in(0, step), layer)

    Args:
      seed: an integer, as a Python number or a scalar array, or a key of `jax.random.key`.
      data: an integer scalar; both may be traced.

    Raises:
      TypeError, ValueError: it is none of these.
    """
    return fold(as_seed(seed), as_seed(data, "data"))


def as_seed(seed: Any, name: str = "seed") -> UInt32[Array, ""]:
    """The word that a seed given by a caller stands for; see `fold_in`."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        if seed.ndim:
            raise ValueError(f"{name} is {seed.shape} keys of jax.random; it must be one")
        words = jax.random.key_data(seed).reshape(-1).astype(jnp.uint32)
        word = words[0]
        for other in words[1:]:
            word = fold(word, other)
        return word
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        if not 0 <= int(seed) < 2**32:
            raise ValueError(f"{name}={seed}; it must be from 0 to 2^32 - 1")
        return jnp.uint32(int(seed))
    if not hasattr(seed, "dtype") or not jnp.issubdtype(seed.dtype, jnp.integer):
        raise TypeError(f"{name} is {kind_of(seed)}; it must be an integer or a jax.random.key")
    if np.ndim(seed):
        raise ValueError(
            f"{name} is {kind_of(seed)}; it must be a scalar; for a key of jax.random.PRNGKey "
            "jax.random.wrap_key_data makes one"
        )
    return jnp.asarray(seed).astype(jnp.uint32)


def mix(word: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32-bit words in which every input bit flips about half of the output's."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def fold(word: UInt32[Array, "..."], counter: Integer[Array, "..."]) -> UInt32[Array, "..."]:
    """The hash of `word` and one more counter, both of the same rank or scalars; broadcasts."""
    return mix(word ^ (counter.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + jnp.uint32(_GOLDEN)))


def head_words(
    seed: UInt32[Array, ""],
    row_ids: Int[Array, " B"],
    heads: int,
    head_offset: Int[Array, ""] | int = 0,
) -> UInt32[Array, "B {heads}"]:
    """The hash of (seed, row, head): where the kernels, which go on by themselves, start."""
    head_ids = jnp.asarray(head_offset, jnp.int32) + jnp.arange(heads, dtype=jnp.int32)
    return fold(fold(seed, row_ids)[:, None], head_ids[None])


def checked_words(
    seed: Any, row_ids: Any, rows: int, heads: int = 1, head_offset: Any = 0, name: str = "seed"
) -> UInt32[Array, "{rows} {heads}"]:
    """`head_words` of what a caller gave; rows without numbers are 0, 1, ...

    Raises:
      TypeError, ValueError: the seed, called `name`, is none (`fold_in`), or the numbers do not fit.
    """
    row_ids = jnp.arange(rows, dtype=jnp.int32) if row_ids is None else row_ids
    check_integers("row_ids", row_ids, (rows,))
    check_integers("head_offset", head_offset, ())
    return head_words(as_seed(seed, name), jnp.asarray(row_ids), heads, head_offset)


def entry_bits(
    words: UInt32[Array, "B H"], query_ids: Int[Array, "#B T"], keys: int
) -> UInt32[Array, "B H T {keys}"]:
    """The bits of every entry of the attention weights, from `head_words` and the queries' numbers."""
    words = fold(words[:, :, None], query_ids[:, None, :])
    return fold(words[..., None], jnp.arange(keys, dtype=jnp.int32)[None, None, None])


def dropout_bits(
    seed: Any,
    row_ids: Int[Array, " B"],
    heads: int,
    queries: int,
    keys: int,
    head_offset: Int[Array, ""] | int = 0,
) -> UInt32[Array, "B {heads} {queries} {keys}"]:
    """Uniform 32-bit words for every entry of the attention weights."""
    words = head_words(as_seed(seed), jnp.asarray(row_ids), heads, head_offset)
    return entry_bits(words, jnp.arange(queries, dtype=jnp.int32)[None], keys)


def keep_mask(bits: UInt32[Array, "*shape"], rate: float) -> Bool[Array, "*shape"]:
    """True where an entry survives, with probability 1 - rate (to within 2^-32)."""
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def keep_scale(rate: float) -> float:
    """By which entries that survive are multiplied, so that the mean stays: 0 where none does."""
    return 0.0 if rate == 1.0 else 1.0 / (1.0 - rate)


def dropout(x: Any, *, rate: Any, seed: Any, row_ids: Any = None) -> Float[Array, "B T D"]:
    """Zero entries of x [B, T, D] with probability `rate` and multiply the others by 1 / (1 - rate).

    `row_ids` [B]: each row's number in the global batch, by default 0, 1, ...

    Raises:
      TypeError, ValueError: x is no such array of floats, the rate not a number from 0 to 1, or the seed
        none (`fold_in`).
    """
    check_floats({"x": x}, rank=3)
    rate = check_rate(rate, "rate")
    if rate == 0.0:
        return x
    rows, length, features = x.shape
    words = checked_words(seed, row_ids, rows)
    bits = entry_bits(words, jnp.arange(length, dtype=jnp.int32)[None], features)[:, 0]
    return jnp.where(keep_mask(bits, rate), x * keep_scale(rate), jnp.zeros((), x.dtype))
