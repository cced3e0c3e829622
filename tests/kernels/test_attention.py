# SPDX-License-Identifier: Apache-2.0
"""Every implementation of attention against a float64 loop that is written here."""

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

IMPLEMENTATIONS = ["reference", "xla", "pallas"]


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


def value_and_gradients(implementation, arrays, **options):
    query, key, value, query_segments, key_segments = arrays

    def total(query, key, value):
        out = attention_kernels.attention(
            query,
            key,
            value,
            query_segments=query_segments,
            key_segments=key_segments,
            dropout_seed=jnp.uint32(1),
            row_ids=jnp.arange(7, 7 + query.shape[0]),
            implementation=implementation,
            **options,
        )
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
        query, key, value
    )
    return out, *gradients


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_agree_with_the_oracles(implementation, causal):
    options = {"causal": causal, "dropout_rate": 0.2, "head_offset": 2}
    ours = value_and_gradients(implementation, example(5), **options)
    theirs = value_and_gradients("reference", example(5), **options)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(other).max() > 0
    # The control: other heads' entries are dropped.
    other_heads = value_and_gradients(implementation, example(5), **options | {"head_offset": 3})
    assert np.abs(other_heads[0] - theirs[0]).max() > 1e-2


# Shapes that take every way through the kernel: ragged; a tile exactly full; more queries than a tile;
# several tiles of keys (a second backward kernel), more queries than keys and fewer.
SHAPES = [(1, 1), (16, 33), (130, 50), (64, 64), (65, 40), (150, 150), (70, 200)]


@given(
    lengths=st.sampled_from(SHAPES),
    sizes=st.sampled_from([(1, 16, 16), (2, 8, 40)]),
    causal=st.booleans(),
    rate=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 9),
)
@settings(max_examples=14)
def test_the_kernel_equals_the_oracle_in_every_shape(lengths, sizes, causal, rate, seed):
    (queries, keys), (heads, k, v) = lengths, sizes
    arrays = example(seed, 2, queries, keys, heads, k, v)
    ours = value_and_gradients("pallas", arrays, causal=causal, dropout_rate=rate)
    theirs = value_and_gradients("reference", arrays, causal=causal, dropout_rate=rate)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * max(1, np.abs(other).max()))


def test_float32_gradients_agree_with_a_float64_oracle():
    """To 1e-5 of the largest; bfloat16 to 1e-2."""
    arrays = example(3, 2, 64, 48, 2, 32, 32)
    options = {"causal": True, "dropout_rate": 0.0}

    def exact(query, key, value):
        scores = jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(32.0)
        same = (arrays[3][:, :, None] == arrays[4][:, None]) & (arrays[3][:, :, None] > 0)
        mask = (same & (np.arange(64)[:, None] >= np.arange(48)))[:, None]
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)) * mask
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1.0, total)
        return jnp.sum(jnp.sin(jnp.einsum("bhts,bshv->bthv", weights, value)))

    with jax.enable_x64(True):
        doubles = [jnp.asarray(np.asarray(array), jnp.float64) for array in arrays[:3]]
        expected = jax.grad(exact, argnums=(0, 1, 2))(*doubles)
        assert expected[0].dtype == jnp.float64
        expected = [np.asarray(gradient) for gradient in expected]

    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        inputs = [array.astype(dtype) for array in arrays[:3]]
        for implementation in ("pallas", "xla"):
            found = value_and_gradients(implementation, (*inputs, *arrays[3:]), **options)[1:]
            for ours, theirs in zip(found, expected, strict=True):
                error = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
                assert error < tolerance * np.linalg.norm(theirs), (dtype, implementation)


def test_the_kernel_says_what_it_cannot_do():
    query, key, value, *_ = example(0)
    doubles = [np.asarray(of, np.float64) for of in (query, key, value)]
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="dtype float64"):
        attention_kernels.attention(*map(jnp.asarray, doubles), implementation="pallas")
    query, key, value, *_ = example(0, k=300)
    with pytest.raises(NotImplementedError, match="heads of 300 and 6 features"):
        attention_kernels.attention(query, key, value, implementation="pallas")


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
