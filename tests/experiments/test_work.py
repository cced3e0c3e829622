# SPDX-License-Identifier: Apache-2.0
"""Hand-counted work: against masks written out, and XLA's count."""

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks import work

KINDS = st.sampled_from(["full", "padded", "packed"])


@given(KINDS, st.integers(1, 3), st.integers(1, 70), st.booleans(), st.integers(0, 9))
def test_visible_pairs_are_those_of_the_mask(kind, rows, length, causal, seed):
    segments = work.segments_of(kind, rows, length, seed)
    queries, keys = segments[:, :, None], segments[:, None, :]
    mask = (queries == keys) & (queries > 0)
    if causal:
        mask &= np.arange(length)[:, None] >= np.arange(length)
    assert work.visible_pairs(segments, causal) == mask.sum()


def test_batches_are_what_they_are_called():
    full, padded, packed = (work.segments_of(kind, 50, 64) for kind in ("full", "padded", "packed"))
    assert np.all(full == 1)
    lengths = (padded > 0).sum(axis=1)
    assert padded.max() == 1 and lengths.min() >= 48 and len(set(lengths)) > 5
    assert np.all((packed > 0).sum(axis=1) == 62)
    assert packed.max(axis=1).min() >= 2 and packed.max() >= 4
    assert np.all(np.diff(packed[:, :62], axis=1) >= 0), "sentences stand together"
    with pytest.raises(ValueError, match="empty"):
        work.segments_of("empty", 1, 1)


def test_attention_is_counted_as_by_its_authors():
    """Products of 3 x 5 pairs and vectors of 7 features, for 2 heads; arrays of 2 bytes an entry."""
    query = jnp.ones((1, 3, 2, 7), jnp.bfloat16)
    key = jnp.ones((1, 5, 2, 7), jnp.bfloat16)
    lowered = jax.jit(
        lambda query, key: attention_kernels.attention(query, key, key, implementation="xla")
    ).lower(query, key)
    counted = work.attention_flops(15, 2, 7, backward=False)
    assert counted == 2 * 2 * 15 * 2 * 7
    # XLA counts the softmax too: a few operations a pair.
    assert counted < lowered.cost_analysis()["flops"] < 1.5 * counted
    assert work.attention_flops(15, 2, 7, backward=True) == 3.5 * counted
    assert work.attention_bytes(3, 2, 7, backward=False) == 4 * query.nbytes
    assert work.attention_bytes(3, 2, 7, backward=True) == 12 * query.nbytes
