# SPDX-License-Identifier: Apache-2.0
"""Devices that are not here: what is known of them, what is chosen for them, and where XLA takes over."""

import logging

import attention_kernels
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from attention_kernels import backends
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh

from transformer_jax.model.transformer import compute_dtype

PLATFORMS = {"NVIDIA": "gpu", "Tesla": "gpu", "AMD": "gpu", "TPU": "tpu", "METAL": "METAL"}


def on(kind):
    """A context that is compiled for a device of this kind."""
    device = AbstractDevice(kind, 1, PLATFORMS[kind.removesuffix("7x").split()[0]])
    mesh = AbstractMesh((1,), ("device",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.fixture(autouse=True)
def nothing_was_logged():
    backends.log_once.cache_clear()


# Compute capability and shared memory are NVIDIA's tables, vector memory that of Google's documentation.
@pytest.mark.parametrize(
    "kind, known",
    [
        ("Tesla V100-SXM2-16GB", ((7, 0), 96 * 1024, None)),
        ("Tesla T4", ((7, 5), 64 * 1024, None)),
        ("NVIDIA A100-SXM4-80GB", ((8, 0), 163 * 1024, None)),
        ("NVIDIA L4", ((8, 9), 101_376, None)),
        ("NVIDIA GeForce RTX 4090", ((8, 9), 101_376, None)),
        ("NVIDIA H100 80GB HBM3", ((9, 0), 232_448, None)),
        ("NVIDIA B200", ((10, 0), 232_448, None)),
        ("NVIDIA Something New", (None, 0, None)),
        ("TPU v3", (None, 0, 2**24)),
        ("TPU v5 lite", (None, 0, 2**27)),
        ("TPU v5", (None, 0, 2**26)),
        ("TPU v99", (None, 0, None)),
    ],
)
def test_what_is_known_of_a_device(kind, known):
    with on(kind):
        device = backends.device()
    assert (device.capability, device.shared_memory, device.vmem) == known


# What compiles there: `make aot`.
@pytest.mark.parametrize(
    "kind, chosen",
    [
        ("Tesla V100-SXM2-16GB", "xla"),
        ("Tesla T4", "xla"),
        ("NVIDIA A100-SXM4-80GB", "pallas"),
        ("NVIDIA L4", "pallas"),
        ("NVIDIA H200", "pallas"),
        ("NVIDIA B200", "pallas"),
        ("NVIDIA Something New", "xla"),
        ("AMD Instinct MI300X", "xla"),
        ("TPU v3", "xla"),
        ("TPU v4", "pallas"),
        ("TPU v5 lite", "pallas"),
        ("TPU7x", "pallas"),
        ("TPU v99", "xla"),
        ("METAL", "xla"),
    ],
)
def test_the_choice_asks_the_device_and_says_once_why_it_is_xla(kind, chosen, caplog):
    x = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    norm = jax.ShapeDtypeStruct((2, 128, 256), jnp.bfloat16)
    with on(kind), caplog.at_level(logging.WARNING, "attention_kernels"):
        for _ in range(2):
            assert attention_kernels.choose_attention(x, x, x) == chosen
            assert attention_kernels.choose_layer_norm(norm, 0.1) == (
                "pallas" if kind == "TPU v3" else chosen
            )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines))
    assert [line for line in lines if "attention" in line and kind in line] or (
        chosen == "pallas" or kind == "METAL"
    )


# The table of kernels/README.md.
@pytest.mark.parametrize(
    "kind, longest, shared",
    [
        ("TPU v4", (5_504, 3_584, 1_664), 2_560),
        ("TPU v5", (23_936, 15_872, 7_808), 11_520),
        ("TPU7x", (23_936, 15_872, 7_808), 11_520),
        ("TPU v5 lite", (48_512, 32_256, 16_000), 23_424),
        ("TPU v6 lite", (48_512, 32_256, 16_000), 23_424),
    ],
)
def test_a_length_that_the_memory_of_a_tpu_does_not_hold_is_xlas(kind, longest, shared):
    sizes = [(64, jnp.bfloat16), (64, jnp.float32), (80, jnp.bfloat16)]
    for (features, dtype), length in zip(sizes, longest, strict=True):
        fits, more = (
            jax.ShapeDtypeStruct((1, of, 8, features), dtype) for of in (length, length + 128)
        )
        with on(kind):
            assert attention_kernels.choose_attention(fits, fits, fits) == "pallas"
            assert attention_kernels.choose_attention(more, more, more).startswith("xla")
    query, key = (jax.ShapeDtypeStruct((1, shared, of, 64), jnp.bfloat16) for of in (8, 1))
    more = [jax.ShapeDtypeStruct((1, shared + 128, of, 64), jnp.bfloat16) for of in (8, 1, 1)]
    with on(kind):
        assert attention_kernels.choose_attention(query, key, key) == "pallas"
        assert attention_kernels.choose_attention(*more).startswith("xla")


def test_what_no_norm_kernel_can_hold_is_xlas():
    """float16 on a TPU; a feature dimension that its memory does not hold."""
    fits, half, wide = (
        jax.ShapeDtypeStruct((2, 8, features), dtype)
        for features, dtype in ((1024, "bfloat16"), (1024, "float16"), (16_384, "float32"))
    )
    with on("TPU v4"):
        choices = [attention_kernels.choose_layer_norm(of, 0.1) for of in (fits, half, wide)]
    assert choices == ["pallas", "xla", "xla"]


def test_shapes_that_are_not_known_are_xlas():
    """`jax.export` with a symbolic batch and length, for a host's accelerator."""
    # A free length is no int, which is what beartype asks for.
    jaxtyping.config.update("jaxtyping_disable", True)
    batch, length = export.symbolic_shape("b, t")
    free, known = (
        jax.ShapeDtypeStruct((*of, 2, 8), jnp.float32) for of in ((batch, length), (2, 5))
    )
    function = jax.jit(lambda x: attention_kernels.attention(x, x, x, causal=True))
    with on("NVIDIA H200"):
        text = export.export(function, platforms=["cuda"])(free).mlir_module()
        control = function.trace(known).lower(lowering_platforms=("cuda",)).as_text()
    jaxtyping.config.update("jaxtyping_disable", False)
    assert "attention_forward" in control and "attention_forward" not in text


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("Tesla T4", "float32"),
        ("NVIDIA L4", "bfloat16"),
        ("AMD Instinct MI300X", "bfloat16"),
        ("TPU v3", "bfloat16"),
        ("METAL", "float32"),
    ],
)
def test_the_default_dtype_is_one_that_the_device_multiplies(kind, dtype):
    with on(kind):
        assert compute_dtype("auto") == jnp.dtype(dtype)
        assert compute_dtype("float32") == jnp.float32
    assert compute_dtype("auto") == jnp.float32


def test_the_device_may_be_another_than_the_hosts_first(monkeypatch):
    """A host with a GPU that computes on its CPU: `jax.default_device` says so."""
    with on("NVIDIA H200"):
        gpu = backends.device()
    monkeypatch.setattr(
        backends,
        "_describe",
        lambda of: gpu if of is jax.devices()[0] else backends.Device("cpu", ""),
    )
    assert backends.device() == gpu
    with jax.default_device(jax.devices()[1]):
        assert backends.device().platform == "cpu"


@pytest.mark.parametrize("kind", ["NVIDIA H200", "TPU v5 lite"])
def test_what_is_traced_for_an_accelerator_and_lowered_for_a_cpu_is_xlas(kind):
    """Forward and backward: the same values as on a CPU alone, from a program without a kernel."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.float32)

    def total(x, scale):
        heads = x.reshape(2, 8, 2, 8)
        out, lse = attention_kernels.attention(
            heads, heads, heads, causal=True, dropout_rate=0.2, dropout_seed=1, return_lse=True
        )
        out = attention_kernels.dropout_add_layer_norm(
            out.reshape(x.shape), x, scale, scale, rate=0.1, seed=2
        )
        return jnp.sum(jnp.sin(out)) + jnp.sum(lse)

    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    arguments = x, jnp.linspace(0.5, 1.5, 16)
    with on(kind):
        exported = export.export(function, platforms=["cpu"])(*arguments)
        assert "attention_forward" in str(jax.make_jaxpr(function)(*arguments)), "the control"
    found = exported.call(*arguments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, function(*arguments)
    )
