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
