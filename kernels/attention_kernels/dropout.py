# SPDX-License-Identifier: Apache-2.0
"""Counter-based random bits: a dropout mask is a pure function of where an entry stands.

    bits = hash(seed, row, head, query, key)

There is no generator state. Every implementation, backend and mesh drops the same entries, as long
as `row` is the row's number in the *global* batch, and a backward pass recomputes the mask instead
of storing it. The hash is a chain of the 32-bit finaliser "lowbias32" (two multiplications, three
shifts), so that the innermost index costs a handful of integer operations an entry.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive counters over the whole range


def mix(word: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32-bit words in which every input bit flips about half of the output's."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def fold(word: UInt32[Array, "..."], counter: Integer[Array, "..."]) -> UInt32[Array, "..."]:
    """The hash of `word` and one more counter; broadcasts."""
    return mix(word ^ (counter.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + jnp.uint32(_GOLDEN)))


def head_words(
    seed: Integer[Array, ""],
    row_ids: Int[Array, " B"],
    heads: int,
    first_head: Int[Array, ""] | int = 0,
) -> UInt32[Array, "B {heads}"]:
    """The hash of (seed, row, head): where the kernels, which go on by themselves, start."""
    return fold(fold(seed.astype(jnp.uint32), row_ids)[:, None], first_head + jnp.arange(heads))


def dropout_bits(
    seed: Integer[Array, ""],
    row_ids: Int[Array, " B"],
    heads: int,
    queries: int,
    keys: int,
    first_head: Int[Array, ""] | int = 0,
) -> UInt32[Array, "B {heads} {queries} {keys}"]:
    """Uniform 32-bit words for every entry of the attention weights."""
    word = head_words(seed, row_ids, heads, first_head)[:, :, None]  # [B, H, 1]
    word = fold(word, jnp.arange(queries))[..., None]  # [B, H, T, 1]
    return fold(word, jnp.arange(keys))


def keep_mask(bits: UInt32[Array, "*shape"], rate: float) -> Bool[Array, "*shape"]:
    """True where an entry survives, with probability 1 - rate (to within 2^-32)."""
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def dropout(
    x: Float[Array, "B T D"], *, rate: float, seed: Integer[Array, ""], row_ids: Int[Array, " B"]
) -> Float[Array, "B T D"]:
    """Zero entries of x with probability `rate` and divide the others by 1 - rate."""
    _, length, features = x.shape
    keep = keep_mask(dropout_bits(seed, row_ids, 1, length, features)[:, 0], rate)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
