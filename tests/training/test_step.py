# SPDX-License-Identifier: Apache-2.0
"""One training step: against optax on whole logits, and the same on every mesh and in any pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.conftest import random_batch
from transformer_jax.config import MeshConfig, resolve
from transformer_jax.errors import UserError
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.optimizer import learning_rate
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import (
    initial_state,
    make_eval_step,
    make_gradients,
    make_train_step,
    model_structure,
)

STEPS = 4


def mesh_of(sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(
        sizes, ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3, devices=devices
    )


def losses(config, *, sizes=(1, 1, 1), accumulate=1, logits_chunk=0):
    """The losses of a few steps, and the parameters after them."""
    config.train.accumulate, config.train.logits_chunk = accumulate, logits_chunk
    run = resolve(config)
    mesh = mesh_of(sizes)
    state, step = initial_state(run, mesh), make_train_step(run, mesh)
    found = []
    for number in range(STEPS):
        state, sums = step(state, random_batch(number, rows=16))
        found.append(float(sums.loss / sums.tokens))
    return np.array(found), jax.device_get(state.params)


@pytest.fixture
def noisy_config(small_config):
    small_config.model.attention_dropout = 0.1
    small_config.model.activation_dropout = 0.1
    # The keys' biases have no gradient (softmax ignores a constant) but rounding noise, which Adam
    # with the paper's epsilon of 1e-9 would blow up to whole steps of random sign.
    small_config.optimizer.epsilon = 1e-5
    return small_config


@pytest.fixture
def deep_config(noisy_config):
    """With a second layer, for the slow ones."""
    noisy_config.model.num_layers = 2
    return noisy_config


@pytest.fixture
def one_device(deep_config):
    return losses(deep_config)


@pytest.mark.slow  # test_meshes.py has meshes, and the next test pieces
@pytest.mark.parametrize(
    "how",
    [
        {"sizes": (2, 2, 2), "logits_chunk": 7},
        {"accumulate": 4},
        {"sizes": (4, 1, 1), "accumulate": 2},
    ],
    ids=str,
)
def test_any_mesh_and_any_pieces_train_the_same_model(deep_config, one_device, how):
    """With dropout on: 1 device = 8 devices, in float32, to 1e-5."""
    found, params = losses(deep_config, **how)
    np.testing.assert_allclose(found, one_device[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_gradients_of_pieces_add_up_to_the_gradient_of_the_batch(noisy_config):
    """With dropout on, to 1e-5 of each parameter's gradient.

    Gradients are compared because Adam's first update is nearly their sign: with the paper's epsilon of
    1e-9 it makes whole steps of what is rounding, and parameters are equal only where gradients are not
    small (see `noisy_config`).
    """
    mesh, batch = mesh_of((1, 1, 1)), random_batch(0, rows=16)
    run = resolve(noisy_config)
    params = initial_state(run, mesh).params

    def gradients(accumulate: int):
        train = dataclasses.replace(run.train, accumulate=accumulate)
        sums, grads = jax.jit(make_gradients(dataclasses.replace(run, train=train), mesh))(
            params, batch, jnp.int32(3)
        )
        return sums, jax.tree_util.tree_leaves_with_path(jax.device_get(grads))

    (sums, whole), (sums_of_pieces, pieces) = gradients(1), gradients(4)
    np.testing.assert_allclose(sums_of_pieces, sums, rtol=1e-5)
    all_together = np.sqrt(sum(np.sum(np.square(grad)) for _, grad in whole))
    for (path, ours), (_, theirs) in zip(pieces, whole, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        size = all_together if name.endswith("key/bias") else np.linalg.norm(theirs)
        assert np.linalg.norm(ours - theirs) <= 1e-5 * size, name


def test_dropout_is_on_in_training(noisy_config):
    noisy, _ = losses(noisy_config)
    noisy_config.model.dropout = 0.0
    assert np.abs(losses(noisy_config)[0] - noisy).max() > 1e-3


def test_a_step_is_the_gradient_that_optax_would_follow(small_config):
    """Loss, gradient and update, written out over whole logits with optax's own functions."""
    small_config.model.dropout = 0.0
    run = resolve(small_config)
    mesh = make_mesh(MeshConfig(data=8))
    state = initial_state(run, mesh)
    params = jax.device_get(state.params)
    batch = random_batch(0, rows=8)

    def loss(params):
        logits = nnx.merge(model_structure(run.model), params)(batch)
        targets = optax.smooth_labels(jax.nn.one_hot(batch.target.ids, 96), 0.1)
        weights = (batch.target.segments > 0).astype(np.float32)
        each = optax.softmax_cross_entropy(logits, targets)
        return jnp.sum(each * weights) / weights.sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    adam = optax.adam(float(learning_rate(1, run.optimizer, 24)), b1=0.9, b2=0.98, eps=1e-9)
    updates, _ = adam.update(grads, adam.init(params), params)
    expected = optax.apply_updates(params, updates)

    state, sums = make_train_step(run, mesh)(state, batch)
    np.testing.assert_allclose(sums.loss / sums.tokens, value, rtol=1e-6)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state.params)),
        jax.tree.leaves(expected),
        strict=True,
    ):
        # The first update is the gradient's sign: where the gradient is rounding noise, its sign is
        # too. Key biases have no gradient at all (softmax ignores a constant).
        if "key" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path):
            continue
        close = np.isclose(ours, theirs, atol=1e-5)
        assert close.mean() > 0.99, f"{jax.tree_util.keystr(path)}: {(~close).sum()} entries differ"


@pytest.mark.slow  # so do many others, at the commands
def test_training_learns(small_config):
    """The same batch over and over: the loss must fall far below that of guessing."""
    small_config.optimizer.peak_rate = 1e-2
    run = resolve(small_config)
    mesh = make_mesh(MeshConfig(data=8))
    state, step = initial_state(run, mesh), make_train_step(run, mesh)
    batch = random_batch(0, rows=8)
    for _ in range(80):
        state, sums = step(state, batch)
    assert float(sums.negative_log_likelihood / sums.tokens) < 0.5 * np.log(96)


def test_evaluation_has_neither_dropout_nor_smoothing(small_config):
    run = resolve(small_config)
    mesh = make_mesh(MeshConfig(data=8))
    params = initial_state(run, mesh).params
    batch = random_batch(0, rows=8)
    sums = make_eval_step(run, mesh)(params, batch)
    model: Transformer = nnx.merge(model_structure(run.model), jax.device_get(params))
    log_p = jax.nn.log_softmax(nnx.jit(lambda model, batch: model(batch))(model, batch))
    chosen = np.take_along_axis(np.asarray(log_p), batch.target.ids[..., None], axis=-1)[..., 0]
    expected = -np.sum(chosen * (batch.target.segments > 0))
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.negative_log_likelihood, expected, rtol=1e-5)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not fit the 8 device"):
        make_mesh(MeshConfig(data=3))
    assert dict(make_mesh(MeshConfig(data=-1, tensor=2)).shape) == {
        "data": 4,
        "fsdp": 1,
        "tensor": 2,
    }


def poisoned(state):
    """The state with one weight that is not a number."""
    params = jax.tree.map(np.array, jax.device_get(state.params))
    params["embedding"]["table"][5, 0] = np.nan
    return dataclasses.replace(state, params=jax.device_put(params))


@pytest.mark.parametrize("how", ["not finite", pytest.param("exploded", marks=pytest.mark.slow)])
def test_a_bad_step_changes_nothing_but_the_step(small_config, how):
    """And the next good one goes on from there; a good step is the control."""
    run = resolve(small_config)
    mesh = make_mesh(MeshConfig(data=8))
    step, initial = make_train_step(run, mesh), initial_state(run, mesh)
    table = np.array(initial.params["embedding"]["table"])
    # A copy to spoil: a step gives its state's buffers away.
    state = jax.tree.map(lambda leaf: jax.device_put(np.array(leaf), leaf.sharding), initial)
    if how == "not finite":
        state = poisoned(state)
    else:
        huge = jax.tree.map(lambda leaf: 1e3 * leaf, state.params)
        state = dataclasses.replace(state, params=huge)
    late = jax.device_put(jnp.int32(run.optimizer.warmup_steps), state.step.sharding)
    state = dataclasses.replace(state, step=late)
    before = jax.device_get(state)
    state, sums = step(state, random_batch(0, rows=8))
    assert int(state.step) == run.optimizer.warmup_steps + 1
    assert not float(sums.tokens) and not float(sums.loss)
    for part in ("params", "optimizer"):
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.device_get(getattr(state, part)),
            getattr(before, part),
        )

    good, sums = step(initial, random_batch(0, rows=8))
    assert float(sums.tokens)
    assert not np.array_equal(good.params["embedding"]["table"], table)


@pytest.mark.slow
def test_rematerialised_layers_train_the_same_model(deep_config, one_device):
    """With dropout on, which must drop the same entries when a layer is computed again."""
    deep_config.train.remat = True
    found, params = losses(deep_config)
    np.testing.assert_allclose(found, one_device[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_bfloat16_copy_computes_and_float32_weights_learn(small_config):
    """The loss is that of the rounded weights; updates too small for bfloat16 add up all the same."""
    small_config.model.dropout = 0.0
    small_config.optimizer.peak_rate = 1e-5
    exact = resolve(small_config)
    small_config.train.param_dtype = "bfloat16"
    rounding = resolve(small_config)
    mesh = make_mesh(MeshConfig(fsdp=8))
    batch = random_batch(0, rows=8)

    def rounded(leaf):
        return leaf.astype(jnp.bfloat16).astype(jnp.float32) if leaf.ndim > 1 else leaf

    state = initial_state(exact, mesh)
    state = dataclasses.replace(state, params=jax.tree.map(rounded, state.params))
    expected = float(make_train_step(exact, mesh)(state, batch)[1].loss)
    before = jax.device_get(initial_state(rounding, mesh).params)
    state, sums = make_train_step(rounding, mesh)(initial_state(rounding, mesh), batch)
    np.testing.assert_allclose(float(sums.loss), expected, rtol=5e-3)
    for new, old in zip(
        jax.tree.leaves(jax.device_get(state.params)), jax.tree.leaves(before), strict=True
    ):
        assert new.dtype == np.float32
        assert np.abs(new - old).max() < 1e-5
    kernel = ("encoder", 0, "feed_forward", "expand", "kernel")
    new, old = state.params, before
    for name in kernel:
        new, old = new[name], old[name]
    assert not np.array_equal(new, old), "the update was lost"
    assert np.array_equal(rounded(jnp.asarray(new)), rounded(jnp.asarray(old))) or (
        np.mean(np.asarray(rounded(jnp.asarray(new)) != rounded(jnp.asarray(old)))) < 0.1
    )
