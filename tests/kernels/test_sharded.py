# SPDX-License-Identifier: Apache-2.0
"""The kernels under a mesh: in a stranger's own `jax.shard_map`, and through the public wrappers.

What eight devices compute is what one does, dropout and gradients of what they share included.
"""

import functools

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

MESH = jax.make_mesh((4, 2), ("rows", "heads"), (AxisType.Auto,) * 2)
ROWS, WHOLE = PartitionSpec("rows"), PartitionSpec()


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_loss_in_a_plain_shard_map(chunk):
    """The embedding is the same on all devices, and so is its gradient: their sum."""
    x, embedding, bias = random(0, 8, 6), random(1, 11, 6), random(2, 11)
    labels = jnp.arange(8) % 11

    def loss(x, embedding, bias, labels):
        return attention_kernels.linear_cross_entropy(
            x, embedding, labels, bias=bias, label_smoothing=0.1, chunk=chunk
        ).loss

    sharded = jax.shard_map(
        lambda *of: lax.psum(loss(*of), "rows"),
        mesh=MESH,
        in_specs=(ROWS, WHOLE, WHOLE, ROWS),
        out_specs=WHOLE,
    )
    found = jax.jit(jax.value_and_grad(sharded, (0, 1, 2)))(x, embedding, bias, labels)
    assert_same(found, jax.value_and_grad(loss, (0, 1, 2))(x, embedding, bias, labels))


def test_the_end_of_a_sublayer_in_a_plain_shard_map():
    arrays = random(0, 8, 5, 6), random(1, 8, 5, 6), random(2, 6), random(3, 6)
    options = {"rate": 0.3, "seed": 4}

    def per_device(x, residual, scale, bias, rows):
        out = attention_kernels.dropout_add_layer_norm(
            x, residual, scale, bias, row_ids=rows, **options
        )
        return lax.psum(jnp.sum(jnp.sin(out)), "rows")

    sharded = jax.shard_map(
        per_device, mesh=MESH, in_specs=(ROWS, ROWS, WHOLE, WHOLE, ROWS), out_specs=WHOLE
    )

    def whole(*arrays):
        return jnp.sum(jnp.sin(attention_kernels.dropout_add_layer_norm(*arrays, **options)))

    found = jax.jit(jax.value_and_grad(sharded, (0, 1, 2, 3)))(*arrays, jnp.arange(8))
    assert_same(found, jax.value_and_grad(whole, (0, 1, 2, 3))(*arrays))


@pytest.mark.parametrize("kind", [("tpu", "TPU v5 lite", "tpu"), ("gpu", "NVIDIA H200", "cuda")])
def test_kernels_are_lowered_in_a_plain_shard_map(kind):
    """With check_vma, for devices that are not here; all three gradients of what is shared."""
    platform, name, lowered = kind
    device = jax.sharding.AbstractDevice(name, 1, platform)
    mesh = jax.sharding.AbstractMesh((4,), ("rows",), (AxisType.Auto,), abstract_device=device)
    vectors, sublayer = (jnp.zeros(of, jnp.bfloat16) for of in ((8, 32, 2, 64), (8, 32, 128)))

    def per_device(vectors, shared, sublayer, scale, rows):
        options = {"seed": 1, "row_ids": rows, "implementation": "pallas"}
        norm = attention_kernels.dropout_add_layer_norm(
            sublayer, sublayer, scale, scale, rate=0.1, **options
        )
        out = attention_kernels.attention(vectors, shared, shared, implementation="pallas")
        return lax.psum(
            jnp.sum(out.astype(jnp.float32)) + jnp.sum(norm.astype(jnp.float32)), "rows"
        )

    sharded = jax.shard_map(per_device, in_specs=(ROWS, WHOLE, ROWS, WHOLE, ROWS), out_specs=WHOLE)
    arguments = vectors, vectors[:2], sublayer, jnp.ones(128), jnp.arange(8)
    with jax.sharding.use_abstract_mesh(mesh):
        function = jax.jit(jax.value_and_grad(sharded, (0, 1, 2, 3)))
        text = function.trace(*arguments).lower(lowering_platforms=(lowered,)).as_text()
    assert "attention_backward" in text and "layer_norm_backward" in text


def test_an_interpreted_kernel_says_where_it_cannot_run():
    x = random(0, 8, 5, 2, 4)
    function = jax.shard_map(
        lambda x: attention_kernels.attention(x, x, x, implementation="pallas"),
        mesh=MESH,
        in_specs=ROWS,
        out_specs=ROWS,
    )
    with pytest.raises(NotImplementedError, match="interpreted on a CPU"):
        function(x)


@pytest.mark.parametrize("implementation", [None, "pallas"])
@pytest.mark.parametrize("heads, key_heads", [(4, 2), (4, 1)])
def test_sharded_attention_is_attention(implementation, heads, key_heads):
    """By any axis names; heads stay together where the axis does not divide those of the keys."""
    arrays = random(0, 8, 6, heads, 4), random(1, 8, 7, key_heads, 4), random(2, 8, 7, key_heads, 3)
    options = {
        "key_segments": jnp.asarray(np.random.default_rng(0).integers(0, 2, (8, 7))),
        "causal": True,
        "query_offset": jnp.arange(8) - 1,
        "dropout_rate": 0.3,
        "dropout_seed": jax.random.key(7),
        "return_lse": True,
        "implementation": implementation,
    }

    def total(function, **options):
        def of(arrays, scale):
            out, lse = function(*arrays, scale=scale, **options)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e9, lse, 0.0)), (out, lse)

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))

    expected = total(attention_kernels.attention, **options)(arrays, 0.4)
    axes = {"batch_axes": ("rows",), "heads_axis": "heads"}
    with jax.set_mesh(MESH):
        function = total(attention_kernels.sharded_attention, **options, **axes)
        found = function(arrays, 0.4)
        text = function.lower(arrays, 0.4).as_text()
    finite = jax.tree.map(lambda of: jnp.where(jnp.isfinite(of), of, 0.0), (found, expected))
    assert_same(*finite)
    assert ("manual_computation" in text) == (implementation == "pallas")


def test_sharded_loss_and_norm_are_those_of_one_device():
    x, embedding, labels = random(0, 8, 6, 5), random(1, 11, 5), jnp.arange(48).reshape(8, 6) % 11
    scale = random(2, 5)

    def loss(x, embedding, scale):
        x = attention_kernels.sharded_dropout_add_layer_norm(
            x, x, scale, scale, batch_axes=("rows",), rate=0.3, seed=3
        )
        return attention_kernels.sharded_linear_cross_entropy(
            x, embedding, labels, batch_axes=("rows",), positions_axis="heads", label_smoothing=0.1
        ).loss

    expected = jax.value_and_grad(loss, (0, 1, 2))(x, embedding, scale)
    with jax.set_mesh(MESH):
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, embedding, scale)
    assert_same(found, expected)


def test_the_norm_kernel_on_a_mesh_has_the_values_of_one_device():
    arrays = random(0, 8, 5, 6), random(1, 8, 5, 6), random(2, 6), random(3, 6)

    def total(implementation, *arrays):
        out = attention_kernels.sharded_dropout_add_layer_norm(
            *arrays, batch_axes=("rows",), rate=0.3, seed=3, implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    expected = jax.value_and_grad(functools.partial(total, "xla"), (0, 1, 2, 3))(*arrays)
    with jax.set_mesh(MESH):
        function = jax.jit(jax.value_and_grad(functools.partial(total, "pallas"), (0, 1, 2, 3)))
        assert_same(function(*arrays), expected)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("length, kernel", [(2048, True), (4096, False)])
def test_the_wrapper_chooses_for_what_a_device_has(explicit, length, kernel):
    """A TPU v4 could hold 4,096 positions of two heads, but each device has three, which go together."""
    device = jax.sharding.AbstractDevice("TPU v4", 1, "tpu")
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.sharding.AbstractMesh((8,), ("heads",), (kind,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        spec = PartitionSpec(None, None, "heads")
        sharding = jax.NamedSharding(mesh, spec) if explicit else None
        x = jax.ShapeDtypeStruct((1, length, 24, 64), jnp.bfloat16, sharding=sharding)
        function = functools.partial(
            attention_kernels.sharded_attention, batch_axes=(), heads_axis="heads"
        )
        lowered = jax.jit(lambda x: function(x, x, x)).trace(x).lower(lowering_platforms=("tpu",))
    assert ("attention_forward" in lowered.as_text()) == kernel


def test_the_wrappers_refuse_what_does_not_fit_with_the_shapes_of_the_whole():
    x, sublayer = random(0, 8, 6, 2, 4), random(0, 8, 6, 5)
    labels, embedding = jnp.zeros((8, 6), jnp.int32), random(1, 11, 5)
    rows = {"batch_axes": ("rows",)}
    with jax.set_mesh(MESH):
        with pytest.raises(ValueError, match="no axis 'data'; it has rows, heads"):
            attention_kernels.sharded_attention(x, x, x, batch_axes=("data",))
        with pytest.raises(
            ValueError, match=r"query_segments has shape \(8, 5\); it must be \(8, 6\)"
        ):
            attention_kernels.sharded_attention(x, x, x, query_segments=labels[:, :5], **rows)
        with pytest.raises(ValueError, match="6 rows cannot be split over the 4 devices"):
            attention_kernels.sharded_attention(x[:6], x[:6], x[:6], **rows)
        with pytest.raises(ValueError, match=r"\(8, 6, 5\), \(8, 5, 5\)"):
            attention_kernels.sharded_dropout_add_layer_norm(
                sublayer, sublayer[:, :5], embedding[0], embedding[0], **rows
            )
        for wrong in ({"labels": labels.T}, {"weights": jnp.ones((6, 8))}):
            with pytest.raises(ValueError, match=r"has shape \(6, 8\); it must be \(8, 6\)"):
                attention_kernels.sharded_linear_cross_entropy(
                    **{"x": sublayer, "embedding": embedding, "labels": labels} | wrong, **rows
                )


def test_options_may_be_numpys():
    x = np.asarray(random(0, 8, 6, 2, 4))
    options = {
        "dropout_rate": np.float32(0.3),
        "dropout_seed": np.uint32(1),
        "row_ids": np.arange(8),
        "causal": np.bool_(True),
        "scale": np.float32(0.5),
        "implementation": "pallas",
    }
    expected = attention_kernels.attention(x, x, x, **options)
    with jax.set_mesh(MESH):
        found = attention_kernels.sharded_attention(x, x, x, batch_axes=("rows",), **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_arrays_that_are_sharded_in_explicit_mode():
    """XLA takes them, kernels and the loss say what does, and the wrappers do."""
    mesh = jax.make_mesh((4,), ("rows",), (AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x, tokens = (jax.device_put(random(0, *of), ROWS) for of in ((8, 5, 2, 4), (8, 5, 6)))
        out = jax.jit(attention_kernels.attention)(x, x, x)
        np.testing.assert_allclose(
            out, attention_kernels.attention(*[jax.device_get(x)] * 3), atol=1e-6
        )
        with pytest.raises(NotImplementedError, match="sharded in explicit mode"):
            attention_kernels.attention(x, x, x, implementation="pallas")
        found = attention_kernels.sharded_attention(
            x, x, x, batch_axes=("rows",), implementation="pallas"
        )
        np.testing.assert_allclose(found, out, atol=1e-6)
        embedding, labels = random(1, 11, 6), jax.device_put(jnp.zeros((8, 5), jnp.int32), ROWS)
        with pytest.raises(NotImplementedError, match="sharded_linear_cross_entropy"):
            attention_kernels.linear_cross_entropy(tokens[:, 0], embedding, labels[:, 0])

        def loss(tokens, embedding):
            return attention_kernels.sharded_linear_cross_entropy(
                tokens, embedding, labels, batch_axes=("rows",), chunk=4
            ).loss

        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(tokens, embedding)
    arrays = jax.device_get((tokens.reshape(40, 6), embedding))
    expected = jax.value_and_grad(
        lambda x, e: attention_kernels.linear_cross_entropy(x, e, np.zeros(40, int)).loss, (0, 1)
    )(*arrays)
    assert_same((found[0], found[1][1]), (expected[0], expected[1][1]))
