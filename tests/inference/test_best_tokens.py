# SPDX-License-Identifier: Apache-2.0
"""The best tokens against a sort of the whole vocabulary."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.inference.best_tokens import best_tokens


@pytest.mark.parametrize("vocabulary", [5, 251, 255, 256, 300, 1000, 1031])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_best_tokens_are_those_of_a_sort(vocabulary, count):
    """Rows of COLUMNS words or not, words in the last incomplete row, all best in one column."""
    generator = np.random.default_rng(vocabulary)
    logits = generator.permutation(3 * 2 * vocabulary).reshape(3, 2, vocabulary) * 0.01
    logits[0, 0, ::128] += 100.0
    logits[0, 1, -5:] += 100.0
    log_probs, ids = best_tokens(jnp.asarray(logits, jnp.float32), count)
    expected = np.argsort(-logits, axis=-1)[..., :count]
    np.testing.assert_array_equal(ids, expected)
    all_log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    wanted = np.take_along_axis(all_log_probs, expected, axis=-1)
    np.testing.assert_allclose(log_probs, wanted, rtol=1e-4, atol=1e-4)
