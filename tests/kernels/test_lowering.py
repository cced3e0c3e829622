# SPDX-License-Identifier: Apache-2.0
"""Every kernel is lowered for devices that are not here: what interpretation forgives, this does not."""

import functools

import attention_kernels
import jax
import jax.numpy as jnp
import pytest
from attention_kernels import backends
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh

DEVICES = {
    "H200": ("cuda", AbstractDevice("NVIDIA H200", 132, "gpu")),
    "v5e": ("tpu", AbstractDevice("TPU v5 lite", 1, "tpu")),
    "v6e": ("tpu", AbstractDevice("TPU v6 lite", 1, "tpu")),
}


def lower(device, function, *shapes):
    """The text of a function that is lowered for a device, its arguments given by shape and dtype."""
    platform, abstract_device = DEVICES[device]
    mesh = AbstractMesh((1,), ("device",), abstract_device=abstract_device)
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("device, chosen", [("v5e", "xla"), ("H200", "pallas")])
def test_float16_has_a_kernel_on_gpus_alone(device, chosen):
    _, abstract_device = DEVICES[device]
    mesh = AbstractMesh((1,), ("device",), abstract_device=abstract_device)
    x = jnp.zeros((2, 64, 4, 64), jnp.float16)
    with jax.sharding.use_abstract_mesh(mesh):
        assert attention_kernels.choose_attention(x, x, x) == chosen


def attention_gradients(
    query,
    key,
    value,
    query_segments,
    key_segments,
    seed,
    rows,
    implementation="pallas",
    **options,
):
    def total(query, key, value):
        out = attention_kernels.attention(
            query,
            key,
            value,
            query_segments=query_segments,
            key_segments=key_segments,
            dropout_seed=seed,
            row_ids=rows,
            implementation=implementation,
            **options,
        )
        return out.astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))(query, key, value)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "queries, keys, heads, k, v, dtype, causal, rate",
    [
        (64, 64, 8, 64, 64, jnp.bfloat16, False, 0.1),
        (64, 64, 16, 64, 64, jnp.float32, True, 0.0),
        (5, 7, 4, 16, 32, jnp.float32, False, 0.1),
        (200, 256, 8, 128, 128, jnp.bfloat16, True, 0.1),
        (257, 300, 3, 24, 40, jnp.bfloat16, False, 0.0),
        (16_384, 16_384, 8, 64, 64, jnp.bfloat16, True, 0.1),
    ],
)
def test_attention_is_lowered(device, queries, keys, heads, k, v, dtype, causal, rate):
    text = lower(
        device,
        lambda *arrays: attention_gradients(*arrays, causal=causal, dropout_rate=rate),
        ((2, queries, heads, k), dtype),
        ((2, keys, heads, k), dtype),
        ((2, keys, heads, v), dtype),
        ((2, queries), jnp.int32),
        ((2, keys), jnp.int32),
        ((), jnp.uint32),
        ((2,), jnp.int32),
    )
    assert "attention_forward" in text and "attention_backward" in text
    whole = {"v5e": 256, "v6e": 256, "H200": 32 if dtype == jnp.float32 else 128}[device]
    assert ("attention_query_backward" in text) == (keys > whole)


@pytest.mark.parametrize(
    "queries, keys, k, v, dtype, causal, rate",
    [
        (1, 1, 16, 16, jnp.bfloat16, False, 0.0),
        (64, 300, 64, 64, jnp.float16, False, 0.1),
        (200, 256, 128, 24, jnp.bfloat16, True, 0.1),
        (16_384, 16_384, 64, 64, jnp.bfloat16, True, 0.1),
    ],
)
def test_attention_through_mosaic_is_lowered(queries, keys, k, v, dtype, causal, rate):
    options = {"causal": causal, "dropout_rate": rate, "implementation": "mosaic_gpu"}
    shapes = [
        ((2, queries, 2, k), dtype),
        ((2, keys, 2, k), dtype),
        ((2, keys, 2, v), dtype),
        ((2, queries), jnp.int32),
        ((2, keys), jnp.int32),
        ((), jnp.uint32),
        ((2,), jnp.int32),
    ]
    gradients = functools.partial(attention_gradients, **options)
    text = lower("H200", gradients, *shapes)
    for kernel in ("attention_forward", "attention_backward", "attention_query_backward"):
        assert f"{kernel}_mosaic_gpu" in text
    # The control: a device without wgmma.
    with pytest.raises(NotImplementedError, match="kind TPU v5 lite: wgmma needs"):
        lower("v5e", gradients, *shapes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("features, dtype", [(1024, jnp.bfloat16), (24, jnp.float32)])
def test_layer_norm_is_lowered(device, features, dtype):
    def gradients(x, residual, scale, bias, seed, rows):
        def total(*arrays):
            out = attention_kernels.dropout_add_layer_norm(
                *arrays, rate=0.1, seed=seed, row_ids=rows, implementation="pallas"
            )
            return out.astype(
                jnp.float32
            ).sum(), out  # or else no one would need the forward kernel

        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(x, residual, scale, bias)

    text = lower(
        device,
        gradients,
        ((4, 40, features), dtype),
        ((4, 40, features), dtype),
        ((features,), jnp.float32),
        ((features,), jnp.float32),
        ((), jnp.uint32),
        ((4,), jnp.int32),
    )
    assert "layer_norm_forward" in text and "layer_norm_backward" in text


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_device_lacks_is_refused(device):
    """The control: interpretation sorts, no kernel can."""

    def sort(x, out):
        out[...] = jnp.sort(x[...], axis=-1)

    def sorted_rows(x):
        whole = pl.BlockSpec((8, 128), lambda i: (0, 0))
        return backends.pallas_call(
            sort,
            [x],
            device=backends.device(),
            grid=(1,),
            in_specs=[whole],
            outputs=[(whole, (8, 128), jnp.float32)],
            flops=0,
        )[0]

    assert jnp.all(sorted_rows(jnp.arange(1024.0)[::-1].reshape(8, 128))[:, 0] < 1000)
    with pytest.raises(NotImplementedError):
        lower(device, sorted_rows, ((8, 128), jnp.float32))
