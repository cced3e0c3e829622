# SPDX-License-Identifier: Apache-2.0
"""The fused end of a sublayer against its parts, values and gradients, and flax's LayerNorm."""

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_kernels import backends
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st


def example(seed, batch, length, features):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, features)] * 2 + [(features,)] * 2
    return [jnp.asarray(rng.normal(1.0, 2.0, shape), jnp.float32) for shape in shapes]


def parts(x, residual, scale, bias, *, rate, seed, row_ids, eps=1e-6):
    """Dropout by itself, then the textbook's normalisation."""
    if rate:
        x = attention_kernels.dropout(x, rate=rate, seed=seed, row_ids=row_ids)
    total = x + residual
    mean = total.mean(axis=-1, keepdims=True)
    variance = ((total - mean) ** 2).mean(axis=-1, keepdims=True)
    return scale * (total - mean) / jnp.sqrt(variance + eps) + bias


def value_and_gradients(function, arrays, **options):
    def total(*arrays):
        out = function(*arrays, **options)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))(
        *arrays
    )
    return out, *gradients


def fused(implementation):
    def function(*arrays, **options):
        return attention_kernels.dropout_add_layer_norm(
            *arrays, implementation=implementation, **options
        )

    return function


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@given(
    shape=st.sampled_from([(1, 1, 1), (2, 5, 12), (3, 40, 24), (2, 64, 128)]),
    rate=st.sampled_from([0.0, 0.1, 0.6]),
    seed=st.integers(0, 9),
)
@settings(max_examples=6)
def test_equals_its_parts(implementation, shape, rate, seed):
    arrays = example(seed, *shape)
    options = {"rate": rate, "seed": jnp.uint32(seed), "row_ids": jnp.arange(shape[0]) + 3}
    ours = value_and_gradients(fused(implementation), arrays, **options)
    theirs = value_and_gradients(parts, arrays, **options)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


def test_wide_rows_as_a_gpu_has_them(monkeypatch):
    """Padded to a power of two, and four positions at a time, which is what its registers hold."""
    gpu = backends.Device("gpu", "NVIDIA H200", (9, 0))
    monkeypatch.setattr(backends, "device", lambda: gpu)
    monkeypatch.setattr(backends, "interpretation", lambda _: True)
    monkeypatch.setattr(backends, "_compiler_params", lambda *_: None)
    monkeypatch.setattr(
        backends, "on_platform", lambda planned, kernel, in_xla, *arrays: kernel(*arrays)
    )
    arrays = example(1, 1, 40, 600)
    options = {"rate": 0.1, "seed": jnp.uint32(1), "row_ids": jnp.array([3])}
    ours = value_and_gradients(fused("pallas"), arrays, **options)
    theirs = value_and_gradients(parts, arrays, **options)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_without_dropout_it_is_flaxs_layer_norm(implementation):
    x, residual, scale, bias = example(0, 2, 7, 48)
    norm = nnx.LayerNorm(48, epsilon=1e-6, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, bias
    ours = fused(implementation)(x, residual, scale, bias)
    np.testing.assert_allclose(ours, norm(x + residual), atol=2e-5)
    assert np.abs(ours - norm(residual)).max() > 0.1, "the control: x counts"


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_a_row_drops_the_same_in_any_batch(implementation):
    x, residual, scale, bias = example(0, 3, 7, 48)
    options = {"rate": 0.5, "seed": jnp.uint32(1)}
    whole = fused(implementation)(x, residual, scale, bias, row_ids=jnp.array([4, 5, 6]), **options)
    last = fused(implementation)(
        x[2:], residual[2:], scale, bias, row_ids=jnp.array([6]), **options
    )
    np.testing.assert_allclose(whole[2:], last, atol=1e-6)
    other = fused(implementation)(
        x[2:], residual[2:], scale, bias, row_ids=jnp.array([5]), **options
    )
    assert np.abs(other - last).max() > 0.1


def test_bfloat16_is_computed_in_float32():
    arrays = example(0, 2, 64, 128)
    rough = [array.astype(jnp.bfloat16) for array in arrays[:2]]
    for implementation in ("xla", "pallas"):
        out = fused(implementation)(*rough, *arrays[2:])
        assert out.dtype == jnp.bfloat16
        exact = fused(implementation)(*(array.astype(jnp.float32) for array in rough), *arrays[2:])
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=2**-7 * np.abs(exact).max())


def test_wrong_arguments_are_errors():
    arrays = example(0, 1, 2, 3)
    with pytest.raises(ValueError, match="known are xla, pallas"):
        fused("magic")(*arrays)
    with pytest.raises(ValueError, match="needs a seed"):
        fused(None)(*arrays, rate=0.1)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_dropout_of_everything_leaves_the_residual(implementation):
    x, residual, scale, bias = example(0, 2, 7, 48)
    ours = value_and_gradients(fused(implementation), (x, residual, scale, bias), rate=1.0, seed=1)
    theirs = value_and_gradients(fused(implementation), (0 * x, residual, scale, bias))
    assert not np.any(ours[1])
    for one, other in zip((ours[0], *ours[2:]), (theirs[0], *theirs[2:]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_no_rows(implementation):
    found = value_and_gradients(fused(implementation), example(0, 0, 7, 48), rate=0.1, seed=1)
    assert found[0].shape == (0, 7, 48) and not np.any(found[3])


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_strict_settings_of_jax(implementation):
    """64 bits, no implicit promotion of ranks or dtypes."""
    arrays = example(0, 2, 7, 48)
    options = {"rate": 0.3, "seed": 1}
    expected = value_and_gradients(fused(implementation), arrays, **options)
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        found = value_and_gradients(fused(implementation), arrays, **options)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))
