# SPDX-License-Identifier: Apache-2.0
"""Every implementation of attention against a float64 loop that is written here."""

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

IMPLEMENTATIONS = ["reference", "xla"]


def oracle(query, key, value, query_segments, key_segments, causal, keep=None, rate=0.0):
    """Equation 1, one query at a time, in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    for b, t, h in np.ndindex(query.shape[:3]):
        seen = [
            s
            for s in range(key.shape[1])
            if query_segments[b, t] == key_segments[b, s] != 0 and (not causal or s <= t)
        ]
        if not seen:
            continue
        scores = key[b, seen, h] @ query[b, t, h] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        if keep is not None:
            weights = np.where(keep[b, h, t, seen], weights / (1 - rate), 0)
        out[b, t, h] = weights @ value[b, seen, h]
    return out


def example(seed, batch=2, queries=5, keys=7, heads=3, k=4, v=6):
    rng = np.random.default_rng(seed)
    arrays = [
        rng.normal(size=shape).astype(np.float32)
        for shape in (
            (batch, queries, heads, k),
            (batch, keys, heads, k),
            (batch, keys, heads, v),
        )
    ]
    return (
        *map(jnp.asarray, arrays),
        jnp.asarray(rng.integers(0, 3, (batch, queries)), jnp.int32),
        jnp.asarray(rng.integers(0, 3, (batch, keys)), jnp.int32),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(seed=st.integers(0, 99), causal=st.booleans(), dropped=st.booleans())
def test_equals_the_oracle(implementation, seed, causal, dropped):
    query, key, value, query_segments, key_segments = example(seed)
    rate = 0.4 if dropped else 0.0
    if seed % 4 == 0:  # one query: decoding's shape has a path of its own
        query, query_segments = query[:, :1], query_segments[:, :1]
    rows = jnp.array([5, 2])
    keep = None
    if dropped:
        bits = attention_kernels.dropout_bits(jnp.uint32(seed), rows, 3, query.shape[1], 7)
        keep = np.asarray(bits) >= np.uint32(round(rate * 2**32))
    out = attention_kernels.attention(
        query,
        key,
        value,
        query_segments=query_segments,
        key_segments=key_segments,
        causal=causal,
        dropout_rate=rate,
        dropout_seed=jnp.uint32(seed),
        row_ids=rows,
        implementation=implementation,
    )
    expected = oracle(query, key, value, query_segments, key_segments, causal, keep, rate)
    np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_all_implementations_agree(causal):
    query, key, value, query_segments, key_segments = example(5)

    def gradients(implementation):
        def total(query, key, value):
            out = attention_kernels.attention(
                query,
                key,
                value,
                query_segments=query_segments,
                key_segments=key_segments,
                causal=causal,
                dropout_rate=0.2,
                dropout_seed=jnp.uint32(1),
                implementation=implementation,
            )
            return jnp.sum(jnp.sin(out))

        return jax.grad(total, argnums=(0, 1, 2))(query, key, value)

    for ours, theirs in zip(gradients("xla"), gradients("reference"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert np.abs(theirs).max() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_gives_zeros_and_no_nan_gradients(implementation):
    query, key, value, query_segments, _ = example(0)
    nothing = jnp.zeros((2, 7), jnp.int32)

    def total(query, key, value):
        out = attention_kernels.attention(
            query,
            key,
            value,
            query_segments=query_segments,
            key_segments=nothing,
            implementation=implementation,
        )
        return jnp.sum(out), out

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    assert not np.any(out)
    assert all(np.all(np.asarray(gradient) == 0) for gradient in gradients)


def test_weights_sum_to_one_where_a_key_is_seen():
    query, key, _, query_segments, key_segments = example(1)
    weights = attention_kernels.attention_weights(
        query, key, query_segments=query_segments, key_segments=key_segments
    )
    seen = (query_segments[:, :, None] == key_segments[:, None]) & (query_segments[:, :, None] > 0)
    expected = np.broadcast_to(seen.any(-1)[:, None], weights.shape[:3])
    np.testing.assert_allclose(weights.sum(-1), expected, atol=1e-6)


def test_unknown_implementation_and_missing_seed_are_errors():
    query, key, value, *_ = example(0)
    with pytest.raises(ValueError, match="known are"):
        attention_kernels.attention(query, key, value, implementation="magic")
    with pytest.raises(ValueError, match="dropout_seed"):
        attention_kernels.attention(query, key, value, dropout_rate=0.1)
