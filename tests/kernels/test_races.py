# SPDX-License-Identifier: Apache-2.0
"""The kernels in the TPU interpreter: two cores, tiles in random order, and a detector of races."""

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_kernels import backends
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from tests.kernels.test_attention import example, value_and_gradients


@pytest.fixture
def on_a_tpu(monkeypatch):
    """Kernels are planned as for a TPU, and interpreted as one would run them."""
    parameters = tpu.InterpretParams(detect_races=True, num_cores_or_threads=2, random_seed=3)
    device = backends.Device("tpu", "TPU v5 lite", vmem=2**27)
    monkeypatch.setattr(backends, "device", lambda: device)
    monkeypatch.setattr(backends, "interpretation", lambda _: parameters)
    monkeypatch.setattr(
        backends, "on_platform", lambda planned, kernel, in_xla, *arrays: kernel(*arrays)
    )
    yield
    tpu.reset_tpu_interpret_mode_state()


def test_attention_has_no_races(on_a_tpu, capfd):
    """Two tiles of queries; all keys in a tile, then several tiles and the second backward kernel."""
    options = {"causal": True, "dropout_rate": 0.2, "query_offset": jnp.array([30])}
    for keys, key_heads in ((40, 2), (300, 1)):  # four query heads, which a program has together
        arrays = example(1, 1, 150, keys, 4, 16, 16, key_heads)
        ours = value_and_gradients("pallas", arrays, **options)
        theirs = value_and_gradients("reference", arrays, **options)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6 * max(1, np.abs(other).max()))
    assert "RACE" not in "".join(capfd.readouterr())


def test_layer_norm_has_no_races(on_a_tpu, capfd):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, 24)), jnp.float32)

    def total(x, scale, implementation):
        out = attention_kernels.dropout_add_layer_norm(
            x, x[::-1], scale, scale, rate=0.3, seed=jnp.uint32(1), implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    for ours, theirs in zip(
        *(jax.grad(total, argnums=(0, 1))(x, jnp.ones(24), which) for which in ("pallas", "xla")),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
    assert "RACE" not in "".join(capfd.readouterr())


def test_a_race_is_seen(on_a_tpu, capfd):
    """The control: all programs write the same block."""

    def kernel(x, out):
        out[...] = x[...]

    blocks, first = (
        pl.BlockSpec((8, 128), index) for index in (lambda i: (i, 0), lambda i: (0, 0))
    )
    x = jnp.ones((32, 128))
    outputs = [(first, (8, 128), jnp.float32)]
    device = backends.device()
    try:
        (out,) = backends.pallas_call(
            kernel, [x], device=device, grid=(4,), in_specs=[blocks], outputs=outputs, flops=0
        )
        jax.block_until_ready(out)
        found = ""
    except jax.errors.JaxRuntimeError as error:  # how newer versions of JAX report it
        found = str(error)
    assert "RACE" in found + "".join(capfd.readouterr())
