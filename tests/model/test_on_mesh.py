# SPDX-License-Identifier: Apache-2.0
"""The kernels on eight devices: the values and gradients of one device, dropout on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer_jax.model import on_mesh
from transformer_jax.model.dropout import DropoutRng

RNG = DropoutRng(jnp.uint32(9), jnp.arange(8, dtype=jnp.int32) + 16)


def make_mesh(sizes):
    axes = "data", "fsdp", "tensor"
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, axes, (AxisType.Auto,) * 3, devices=devices)


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def value_and_gradients(function, arrays, mesh):
    """Of a function that is traced under the mesh, its inputs split by rows where they have 8."""

    def total(arrays):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out = function(*arrays)
            return jnp.sum(jnp.sin(out)), out

    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([("data", "fsdp")], []))
    placed = [jax.device_put(array, rows if len(array) == 8 else whole) for array in arrays]
    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, out), gradients = step(placed)
    return step.lower(placed).as_text(), jax.device_get((out, gradients))


def attention(query, key, value, *, rng=RNG, implementation="pallas"):
    segments = jnp.asarray(np.random.default_rng(0).integers(0, 3, (8, 16)), jnp.int32)
    return on_mesh.attention(
        query, key, value, segments, segments,
        causal=True, rate=0.3, rng=rng, implementation=implementation,
    )  # fmt: skip


def layer_norm(x, residual, scale, bias, *, rng=RNG):
    return on_mesh.dropout_add_layer_norm(x, residual, scale, bias, rate=0.3, eps=1e-6, rng=rng)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("function", [attention, layer_norm])
def test_every_mesh_computes_what_one_device_does(sizes, function):
    if function is attention:
        arrays = [random(seed, 8, 16, 2, 16) for seed in range(3)]
    else:
        arrays = [random(0, 8, 16, 24), random(1, 8, 16, 24), random(2, 24), random(3, 24)]
    _, one = value_and_gradients(function, arrays, make_mesh((1, 1, 1)))
    text, many = value_and_gradients(function, arrays, make_mesh(sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5), many, one)
    assert "manual_computation" in text or "SPMDFullToShardShape" in text, "nothing was split"
    # The control: with other rows' dropout the result is another.
    other = DropoutRng(RNG.seed, RNG.rows + 1)
    _, wrong = value_and_gradients(
        lambda *arrays: function(*arrays, rng=other), arrays, make_mesh((1, 1, 1))
    )
    assert np.abs(wrong[0] - one[0]).max() > 1e-2


def test_xla_splits_its_own_operations():
    arrays = [random(seed, 8, 16, 2, 16) for seed in range(3)]
    function = lambda *arrays: attention(*arrays, implementation="xla")  # noqa: E731
    text, many = value_and_gradients(function, arrays, make_mesh((2, 2, 2)))
    assert "manual_computation" not in text
    _, one = value_and_gradients(attention, arrays, make_mesh((1, 1, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5), many, one)
