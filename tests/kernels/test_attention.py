# SPDX-License-Identifier: Apache-2.0
"""Every implementation of attention against a float64 loop that is written here."""

import functools

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_kernels import xla
from hypothesis import given, settings
from hypothesis import strategies as st

IMPLEMENTATIONS = ["reference", "xla", "xla_chunked", "pallas"]
COMPILED = ["xla", "xla_chunked", "pallas"]  # what is compared with the oracle's gradients


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four queries make a block of "xla_chunked", so that small examples have several."""
    monkeypatch.setattr(xla, "BLOCK", 4)


def oracle(query, key, value, segments=None, causal=False, offset=0, keep=None, rate=0.0):
    """Equation 1 and the log-sum-exp, one query at a time, in float64."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    offset = np.broadcast_to(offset, len(query))
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    lse = np.full(query.shape[:3], -np.inf)
    for b, t, h in np.ndindex(query.shape[:3]):
        head = h // (query.shape[2] // key.shape[2])
        seen = [
            s
            for s in range(key.shape[1])
            if (segments is None or segments[0][b, t] == segments[1][b, s] != 0)
            and (not causal or s <= t + offset[b])
        ]
        if not seen:
            continue
        scores = key[b, seen, head] @ query[b, t, h] / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max())
        lse[b, t, h] = scores.max() + np.log(weights.sum())
        weights /= weights.sum()
        if keep is not None:
            weights = np.where(keep[b, h, t, seen], weights / (1 - rate), 0)
        out[b, t, h] = weights @ value[b, seen, head]
    return out, lse


def example(seed, batch=2, queries=5, keys=7, heads=3, k=4, v=6, key_heads=None):
    """query, key, value, and the segments of both sides, with padding."""
    rng = np.random.default_rng(seed)
    key_heads = key_heads or heads
    arrays = [
        rng.normal(size=shape).astype(np.float32)
        for shape in (
            (batch, queries, heads, k),
            (batch, keys, key_heads, k),
            (batch, keys, key_heads, v),
        )
    ]
    return (
        *map(jnp.asarray, arrays),
        jnp.asarray(rng.integers(0, 3, (batch, queries)), jnp.int32),
        jnp.asarray(rng.integers(0, 3, (batch, keys)), jnp.int32),
    )


@functools.cache
def compiled(implementation, **static):
    """attention, compiled once for what does not change; (out, lse) of arrays and traced options."""

    @jax.jit
    def function(query, key, value, traced):
        return attention_kernels.attention(
            query, key, value, return_lse=True, implementation=implementation, **traced, **static
        )

    return function


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(seed=st.integers(0, 99), causal=st.booleans(), dropped=st.booleans())
@settings(max_examples=6)
def test_equals_the_oracle(implementation, key_heads, seed, causal, dropped):
    """Grouped heads too, and the log-sum-exp, which dropout leaves alone."""
    query, key, value, *segments = example(seed, heads=4, key_heads=key_heads)
    rate, rows = 0.4 if dropped else 0.0, jnp.array([5, 2])
    keep = None
    if dropped:
        bits = attention_kernels.dropout_bits(seed, rows, 4, 5, 7)
        keep = np.asarray(bits) >= np.uint32(round(rate * 2**32))
    traced = {
        "query_segments": segments[0],
        "key_segments": segments[1],
        "dropout_seed": jnp.uint32(seed),
        "row_ids": rows,
    }
    function = compiled(implementation, causal=causal, dropout_rate=rate)
    out, lse = function(query, key, value, traced)
    expected = oracle(query, key, value, segments, causal, 0, keep, rate)
    np.testing.assert_allclose(out, expected[0], atol=2e-6)
    np.testing.assert_allclose(lse, expected[1], atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_queries_may_begin_anywhere(implementation):
    """Over a cache, each row at its own position; the dropped entries are those of the whole."""
    query, key, value, *_ = example(3, queries=7)
    options = {"causal": True, "dropout_rate": 0.3, "implementation": implementation}
    traced = {"dropout_seed": jnp.uint32(4)}
    function = compiled(implementation, causal=True, dropout_rate=0.3)
    whole, _ = function(query, key, value, traced)
    last, _ = function(query[:, 4:], key, value, traced | {"query_offset": jnp.int32(4)})
    np.testing.assert_allclose(last, whole[:, 4:], atol=1e-6)
    one = attention_kernels.attention(
        query[:, 2:3], key, value, **options, **traced, query_offset=2
    )
    np.testing.assert_allclose(one, whole[:, 2:3], atol=1e-6)
    offsets = jnp.array([3, -2])  # the second row's first two queries stand before all keys
    out, lse = compiled(implementation, causal=True)(query, key, value, {"query_offset": offsets})
    expected = oracle(query, key, value, None, True, [3, -2])
    np.testing.assert_allclose(out, expected[0], atol=2e-6)
    np.testing.assert_allclose(lse, expected[1], atol=2e-6)
    assert not np.any(out[1, :2]) and np.all(np.isneginf(lse[1, :2]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["query", "key"])
def test_a_side_without_segments_belongs_to_all(implementation, side):
    """Only padding of the other side is hidden, whatever its other numbers are."""
    query, key, value, query_segments, key_segments = example(0)
    given_ = query_segments if side == "query" else key_segments
    out, _ = compiled(implementation)(query, key, value, {f"{side}_segments": given_})
    seen = np.asarray(given_) != 0
    ones = np.ones((2, 5), int), np.ones((2, 7), int)
    segments = (seen, ones[1]) if side == "query" else (ones[0], seen)
    np.testing.assert_allclose(out, oracle(query, key, value, segments)[0], atol=2e-6)
    assert not seen.all(), "the control: something is padding"


def value_and_gradients(implementation, arrays, **options):
    """Output and gradients of a sum over it and, where it is wanted, the log-sum-exp."""
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
        out, *lse = out if isinstance(out, tuple) else (out,)
        sums = jnp.sum(jnp.sin(out.astype(jnp.float32)))
        return sums + sum(jnp.sum(jnp.where(of > -1e9, jnp.sin(of), 0.0)) for of in lse), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
        query, key, value
    )
    return out, *gradients


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("causal, key_heads", [(False, 4), (True, 2), (True, 1)])
def test_gradients_agree_with_the_oracles(implementation, causal, key_heads):
    arrays = example(5, heads=4, key_heads=key_heads)
    options = {"causal": causal, "dropout_rate": 0.2, "head_offset": 2, "return_lse": True}
    options |= {"query_offset": jnp.array([1, 3])} if causal else {}
    ours = value_and_gradients(implementation, arrays, **options)
    theirs = value_and_gradients("reference", arrays, **options)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(other).max() > 0
    # The control: other heads' entries are dropped.
    other_heads = value_and_gradients(implementation, arrays, **options | {"head_offset": 3})
    assert np.abs(other_heads[0] - theirs[0]).max() > 1e-2


def test_parts_of_the_keys_are_put_together_by_their_log_sums():
    query, key, value, *_ = example(1, keys=12)
    parts = [
        compiled("pallas")(query, key[:, keys], value[:, keys], {})
        for keys in (slice(0, 5), slice(5, 12))
    ]
    outs, lses = (np.stack(of) for of in zip(*parts, strict=True))
    shares = np.exp(lses - np.logaddexp(*lses))[..., None]
    whole, lse = oracle(query, key, value)
    np.testing.assert_allclose((shares * outs).sum(axis=0), whole, atol=1e-6)
    np.testing.assert_allclose(np.logaddexp(*lses), lse, atol=1e-6)


# Shapes that take every way through the kernel: ragged; a tile exactly full; more queries than a tile;
# several tiles of keys (a second backward kernel), more queries than keys and fewer.
SHAPES = [(1, 1), (16, 33), (130, 50), (64, 64), (65, 40), (150, 150), (70, 200)]


@given(
    lengths=st.sampled_from(SHAPES),
    sizes=st.sampled_from([(1, 1, 16, 16), (4, 2, 8, 40)]),
    causal=st.booleans(),
    rate=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 9),
)
@settings(max_examples=6)
def test_the_kernel_equals_the_oracle_in_every_shape(lengths, sizes, causal, rate, seed):
    (queries, keys), (heads, key_heads, k, v) = lengths, sizes
    arrays = example(seed, 2, queries, keys, heads, k, v, key_heads)
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
        expected = jax.jit(jax.grad(exact, argnums=(0, 1, 2)))(*doubles)
        assert expected[0].dtype == jnp.float64
        expected = [np.asarray(gradient) for gradient in expected]

    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        inputs = [array.astype(dtype) for array in arrays[:3]]
        for implementation in COMPILED:
            found = value_and_gradients(implementation, (*inputs, *arrays[3:]), **options)[1:]
            for ours, theirs in zip(found, expected, strict=True):
                error = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
                assert error < tolerance * np.linalg.norm(theirs), (dtype, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_scale_may_be_learned(implementation):
    """Its gradient is that of finite differences of the float64 oracle."""
    query, key, value, *_ = example(2, batch=1, heads=2)

    def total(scale):
        out = attention_kernels.attention(
            query, key, value, scale=scale, implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    def exact(scale):
        return np.sum(np.sin(oracle(np.asarray(query, np.float64) * scale * 2, key, value)[0]))

    loss, gradient = jax.jit(jax.value_and_grad(total))(0.3)
    assert loss == pytest.approx(exact(0.3), abs=1e-5)
    assert gradient == pytest.approx((exact(0.301) - exact(0.299)) / 0.002, abs=1e-4)


@pytest.mark.parametrize("implementation", COMPILED)
def test_second_derivatives(implementation):
    """A product with the Hessian, by finite differences of the gradient."""
    arrays = example(2, batch=1, heads=2)[:3]

    def total(arrays):
        out = attention_kernels.attention(
            *arrays, causal=True, dropout_rate=0.2, dropout_seed=1, implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    tangents = example(3, batch=1, heads=2)[:3]
    found = jax.jit(lambda *of: jax.jvp(jax.grad(total), *of)[1])((arrays,), (tangents,))
    step = 1e-2
    ahead, behind = (
        jax.jit(jax.grad(total))(
            [a + sign * step * t for a, t in zip(arrays, tangents, strict=True)]
        )
        for sign in (1, -1)
    )
    for one, two, product in zip(ahead, behind, found, strict=True):
        np.testing.assert_allclose(product, (one - two) / (2 * step), atol=2e-3)
        assert np.abs(product).max() > 0.1


def test_the_kernel_says_what_it_cannot_do():
    query, key, value, *_ = example(0)
    with jax.enable_x64(True):
        doubles = [jnp.asarray(np.asarray(of, np.float64)) for of in (query, key, value)]
        with pytest.raises(NotImplementedError, match="dtype float64"):
            attention_kernels.attention(*doubles, implementation="pallas")
    query, key, value, *_ = example(0, k=300)
    with pytest.raises(NotImplementedError, match="heads of 300 and 6 features"):
        attention_kernels.attention(query, key, value, implementation="pallas")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_gives_zeros_and_no_nan_gradients(implementation):
    query, key, value, query_segments, _ = example(0)
    arrays = query, key, value, query_segments, jnp.zeros((2, 7), jnp.int32)
    for array in value_and_gradients(implementation, arrays, return_lse=True):
        assert np.all(np.asarray(array) == 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 5, 7, 3, 4, 6), (2, 0, 7, 3, 4, 6), (2, 5, 0, 3, 4, 6)])
def test_empty_arrays(implementation, shape):
    """No rows, no queries; no keys, whose output is zero as a padded query's is."""
    arrays = example(0, *shape)
    found = value_and_gradients(implementation, arrays, dropout_rate=0.3)
    assert found[0].shape == (*shape[:2], 3, 6)
    assert all(np.all(np.asarray(of) == 0) for of in found)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_of_everything(implementation):
    for array in value_and_gradients(implementation, example(1), dropout_rate=1.0):
        assert np.all(np.asarray(array) == 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mixed_dtypes_are_computed_in_float32_and_the_output_is_as_the_query(implementation):
    query, key, value, *segments = example(1)
    half = query.astype(jnp.bfloat16)
    mixed = (half, key, value.astype(jnp.float16), *segments)
    out, d_query, d_key, d_value = value_and_gradients(implementation, mixed)
    assert (out.dtype, d_query.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert (d_key.dtype, d_value.dtype) == (jnp.float32, jnp.float16)
    expected, _ = oracle(half, key, mixed[2], segments)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2**-8 * np.abs(out).max())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_strict_settings_of_jax(implementation):
    """64 bits, no implicit promotion of ranks or dtypes."""
    arrays = example(6, 1, 150, 150)
    options = {"causal": True, "dropout_rate": 0.3, "query_offset": jnp.array([1])}
    expected = value_and_gradients(implementation, arrays, **options)
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        found = value_and_gradients(implementation, arrays, **options)
        half = [of.astype(jnp.bfloat16) for of in arrays[:3]]
        assert value_and_gradients(implementation, (*half, *arrays[3:]))[0].dtype == jnp.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=2e-6 * max(1, np.abs(other).max()))


def test_doubles_are_computed_as_such():
    arrays = [np.asarray(of, np.float64) for of in example(1)[:3]]
    with jax.enable_x64(True):
        out = attention_kernels.attention(*map(jnp.asarray, arrays))
        np.testing.assert_allclose(out, oracle(*arrays)[0], atol=1e-14)


def test_blocks_of_queries_need_memory_that_is_linear_in_the_keys(monkeypatch):
    """Forward and backward; what is chosen where XLA serves long inputs."""
    monkeypatch.undo()
    long = jax.ShapeDtypeStruct((1, 4096, 1, 16), jnp.float32)
    longer = jax.ShapeDtypeStruct((1, 16_384, 1, 16), jnp.float32)
    assert attention_kernels.choose_attention(longer, longer, longer) == "xla_chunked"

    def temporary(of, implementation=None):
        def total(query, key, value):
            out = attention_kernels.attention(
                query, key, value, causal=True, implementation=implementation
            )
            return jnp.sum(jnp.sin(out))

        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(of, of, of).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(longer) < 5 * temporary(long)
    assert temporary(longer) < 4 * 16_384**2 / 8, "all weights would be a gigabyte"
    assert temporary(long, "xla") >= 4 * 4096**2, "the control: the weights are all there"


def test_weights_sum_to_one_where_a_key_is_seen():
    query, key, _, query_segments, key_segments = example(1, heads=4, key_heads=2)
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
