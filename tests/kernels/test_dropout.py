# SPDX-License-Identifier: Apache-2.0
"""The counter-based bits: uniform, independent of each other, and a function of the place alone."""

import attention_kernels
import jax.numpy as jnp
import numpy as np
import pytest


def bits(seed=0, rows=(0, 1), heads=4, queries=64, keys=64):
    return np.asarray(
        attention_kernels.dropout_bits(
            jnp.uint32(seed), jnp.asarray(rows, jnp.int32), heads, queries, keys
        )
    )


def test_a_row_has_the_same_bits_in_any_batch():
    np.testing.assert_array_equal(bits(rows=(7, 3))[1], bits(rows=(3, 9))[0])


def test_every_bit_is_fair():
    words = bits(rows=range(64)).reshape(-1)  # a million words
    for bit in range(32):
        share = np.mean((words >> bit) & 1)
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(words.size), f"bit {bit}: {share}"


@pytest.mark.parametrize("axis", ["row", "head", "query", "key", "seed"])
def test_neighbours_are_uncorrelated(axis):
    """The control is the correlation of an array with itself, 1."""
    words = bits(rows=range(64)).astype(np.float64)
    if axis == "seed":
        one, other = words, bits(seed=1, rows=range(64)).astype(np.float64)
    else:
        place = ["row", "head", "query", "key"].index(axis)
        one = words.take(range(words.shape[place] - 1), place)
        other = words.take(range(1, words.shape[place]), place)
    correlation = np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(one.size)
    assert np.corrcoef(one.reshape(-1), one.reshape(-1))[0, 1] > 0.99


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_dropout_keeps_the_share_and_the_mean(rate):
    x = jnp.ones((64, 128, 32))
    out = np.asarray(
        attention_kernels.dropout(x, rate=rate, seed=jnp.uint32(5), row_ids=jnp.arange(64))
    )
    assert set(np.unique(out)) == {0.0, np.float32(1 / (1 - rate))}
    assert abs(np.mean(out == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / out.size)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_ten_million_decisions_are_uniform_and_independent(rate):
    """Chi-square tests of the words' bytes, of the share that is kept, and of pairs of neighbours.

    Each statistic stays below its 1 - 1e-6 quantile; the control, a hash that is linear in the key,
    does not.
    """
    words = bits(seed=7, rows=range(40), heads=8, queries=192, keys=176)
    assert words.size > 10_000_000
    for shift in (0, 8, 16, 24):
        counts = np.bincount(((words >> shift) & 255).reshape(-1), minlength=256)
        assert chi_square(counts, np.full(256, words.size / 256)) < 377  # 255 degrees of freedom
    kept = words >= np.uint32(round(rate * 2**32))
    pairs = {
        axis: (
            kept.take(range(kept.shape[axis] - 1), axis),
            kept.take(range(1, kept.shape[axis]), axis),
        )
        for axis in range(4)
    }
    pairs["seed"] = kept, bits(8, range(40), 8, 192, 176) >= np.uint32(round(rate * 2**32))
    for one, other in pairs.values():
        assert chi_square(*pair_counts(one, other, rate)) < 31  # 3 degrees of freedom
    linear = np.arange(words.size, dtype=np.uint32).reshape(words.shape) * np.uint32(2654435769)
    kept = linear >= np.uint32(round(rate * 2**32))
    assert chi_square(*pair_counts(kept[..., :-1], kept[..., 1:], rate)) > 1000


def pair_counts(one, other, rate):
    """How often each of the four pairs of decisions came, and how often it should have."""
    found = np.bincount((2 * one + other).reshape(-1), minlength=4)
    share = np.array([rate, 1 - rate])
    return found, one.size * np.outer(share, share).reshape(-1)


def chi_square(found, expected):
    return np.sum((found - expected) ** 2 / expected)
