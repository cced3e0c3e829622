# SPDX-License-Identifier: Apache-2.0
"""The fused cross-entropy against optax on whole logits, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attention_kernels import linear_cross_entropy
from hypothesis import given, settings
from hypothesis import strategies as st


def optax_loss(x, embedding, labels, weights, smoothing):
    logits = x @ embedding.T
    targets = optax.smooth_labels(jax.nn.one_hot(labels, embedding.shape[0]), smoothing)
    return jnp.sum(weights * optax.softmax_cross_entropy(logits, targets))


def example(seed, tokens, width, vocabulary):
    keys = jax.random.split(jax.random.key(seed), 4)
    return (
        jax.random.normal(keys[0], (tokens, width)),
        jax.random.normal(keys[1], (vocabulary, width)),
        jax.random.randint(keys[2], (tokens,), 0, vocabulary),
        jax.random.bernoulli(keys[3], 0.7, (tokens,)).astype(jnp.float32),
    )


@given(
    seed=st.integers(0, 99),
    tokens=st.sampled_from([1, 5, 17, 23]),  # few shapes, because each is compiled
    vocabulary=st.sampled_from([2, 11, 37]),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    chunk=st.sampled_from([None, 0, 1, 5, 8, 64]),
)
@settings(max_examples=5)
def test_equals_optax_for_any_chunk(seed, tokens, vocabulary, smoothing, chunk):
    x, embedding, labels, weights = example(seed, tokens, 7, vocabulary)

    def ours(x, embedding):
        return linear_cross_entropy(
            x, embedding, labels, label_smoothing=smoothing, weights=weights, chunk=chunk
        ).loss

    loss, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x, embedding)
    expected, expected_gradients = jax.jit(jax.value_and_grad(optax_loss, argnums=(0, 1)))(
        x, embedding, labels, weights, smoothing
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(x, embedding), expected, rtol=1e-5, atol=1e-5)
    for ours_, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_bias_is_a_feature_that_is_always_one(chunk):
    x, embedding, labels, weights = example(3, 17, 7, 11)
    bias = jnp.linspace(-2.0, 2.0, 11)
    options = {"label_smoothing": 0.1, "weights": weights, "chunk": chunk}

    def with_bias(x, embedding, bias):
        return linear_cross_entropy(x, embedding, labels, bias=bias, **options).loss

    def with_feature(x, embedding, bias):
        x = jnp.concatenate([x, jnp.ones((17, 1))], axis=1)
        embedding = jnp.concatenate([embedding, bias[:, None]], axis=1)
        return linear_cross_entropy(x, embedding, labels, **options).loss

    ours, expected = (
        jax.value_and_grad(loss, argnums=(0, 1, 2))(x, embedding, bias)
        for loss in (with_bias, with_feature)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected
    )


def test_counts_what_the_model_would_have_chosen():
    embedding = jnp.eye(3)
    x = jnp.array([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0], [9.0, 0, 0]])
    sums = linear_cross_entropy(
        x, embedding, jnp.array([0, 1, 0, 0]), weights=jnp.array([1.0, 1, 1, 0]), chunk=2
    )
    assert sums.correct == 2.0


def test_unsmoothed_sum_is_reported_beside_the_smoothed():
    x, embedding, labels, weights = example(0, 11, 7, 19)
    smoothed = linear_cross_entropy(x, embedding, labels, label_smoothing=0.1, weights=weights)
    plain = linear_cross_entropy(x, embedding, labels, weights=weights)
    np.testing.assert_allclose(smoothed.negative_log_likelihood, plain.loss, rtol=1e-6)
    assert smoothed.loss != plain.loss


@pytest.mark.parametrize("vocabulary", [1000, 37_000])
def test_chunks_never_hold_all_logits(vocabulary):
    """The compiled gradient's temporary memory stays below the size of the full logits."""
    x, embedding, labels, _ = example(0, 4096, 8, vocabulary)

    def temporary_bytes(chunk):
        loss = lambda x, e: linear_cross_entropy(x, e, labels, chunk=chunk).loss  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, embedding).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 4096 * vocabulary
    assert temporary_bytes(256) < logits / 3
    assert temporary_bytes(None) >= logits, "the control: without chunks the logits are all there"


def test_bfloat16_inputs_keep_float32_sums():
    x, embedding, labels, _ = example(0, 512, 16, 50)
    exact = linear_cross_entropy(x, embedding, labels, chunk=64)
    rough = linear_cross_entropy(x.astype(jnp.bfloat16), embedding, labels, chunk=64)
    assert rough.loss.dtype == jnp.float32
    np.testing.assert_allclose(rough.loss, exact.loss, rtol=2e-2)


@pytest.mark.parametrize("chunk", [None, 5])
def test_every_sum_has_its_gradient(chunk):
    """By x, embedding, bias and weights, in any mixture: that of optax on whole logits."""
    x, embedding, labels, weights = example(3, 17, 7, 11)
    bias = jnp.linspace(-2.0, 2.0, 11)

    def ours(x, embedding, bias, weights):
        sums = linear_cross_entropy(
            x, embedding, labels, bias=bias, label_smoothing=0.2, weights=weights, chunk=chunk
        )
        return 2.0 * sums.negative_log_likelihood - 0.5 * sums.loss + 0.1 * sums.correct

    def theirs(x, embedding, bias, weights):
        logits = x @ embedding.T + bias
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 11), 0.2)
        loss = optax.softmax_cross_entropy(logits, targets)
        correct = jnp.argmax(logits, axis=-1) == labels
        return jnp.sum(weights * (2.0 * nll - 0.5 * loss + 0.1 * correct))

    found, expected = (
        jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3)))(x, embedding, bias, weights)
        for of in (ours, theirs)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )
    nll = jax.grad(
        lambda x: linear_cross_entropy(x, embedding, labels, chunk=chunk).negative_log_likelihood
    )(x)
    plain = jax.grad(lambda x: optax_loss(x, embedding, labels, jnp.ones(17), 0.0))(x)
    np.testing.assert_allclose(nll, plain, rtol=1e-4, atol=1e-5)


def test_the_loss_alone_makes_the_logits_once():
    """Three products, as ever: the gradient of what nobody differentiates costs nothing."""
    x, embedding, labels, _ = example(0, 16, 7, 11)

    def total(x, embedding):
        sums = linear_cross_entropy(x, embedding, labels, label_smoothing=0.1)
        return sums.loss, sums

    text = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True)).lower(x, embedding).as_text()
    assert text.count("dot_general") == 3


def test_a_banned_word_has_no_probability():
    """A bias of -inf: optax has the same loss and gradients."""
    x, embedding, labels, _ = example(3, 17, 7, 11)
    labels = jnp.where(labels == 3, 4, labels)
    bias = jnp.zeros(11).at[3].set(-jnp.inf)

    def ours(x, embedding):
        return linear_cross_entropy(x, embedding, labels, bias=bias).loss

    def theirs(x, embedding):
        logits = x @ embedding.T + bias
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    found, expected = (
        jax.value_and_grad(of, argnums=(0, 1))(x, embedding) for of in (ours, theirs)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )
    assert np.isposinf(
        linear_cross_entropy(x, embedding, labels, bias=bias, label_smoothing=0.1).loss
    )


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("wrong", [-100, -1, 11])
def test_a_label_that_is_no_word_counts_for_nothing_or_is_seen(wrong, chunk):
    x, embedding, labels, _ = example(3, 9, 7, 11)
    weights = (jnp.arange(9) != 4).astype(jnp.float32)
    labels = labels.at[4].set(wrong)

    def total(x, weights):
        sums = linear_cross_entropy(
            x, embedding, labels, label_smoothing=0.1, weights=weights, chunk=chunk
        )
        return sums.loss, sums

    (loss, sums), gradient = jax.value_and_grad(total, has_aux=True)(x, weights)
    keep = np.arange(9) != 4
    expected = jax.value_and_grad(optax_loss)(x[keep], embedding, labels[keep], 1.0, 0.1)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient[keep], expected[1], rtol=1e-4, atol=1e-5)
    assert not np.any(gradient[4]) and np.all(np.isfinite(jax.tree.leaves(sums)))
    (loss, _), gradient = jax.value_and_grad(total, has_aux=True)(x, jnp.ones(9))
    assert np.isnan(loss) and np.all(np.isnan(gradient[4]))


def test_no_tokens():
    x, embedding, labels, _ = example(0, 0, 7, 11)

    def total(x, embedding):
        return linear_cross_entropy(x, embedding, labels, chunk=4).loss

    loss, gradients = jax.value_and_grad(total, argnums=(0, 1))(x, embedding)
    assert loss == 0.0 and not np.any(gradients[1]) and gradients[0].shape == (0, 7)


def test_strict_settings_of_jax():
    """64 bits, no implicit promotion of ranks or dtypes; doubles are computed as such."""
    x, embedding, labels, weights = example(3, 17, 7, 11)
    bias = jnp.linspace(-2.0, 2.0, 11)

    def total(x, embedding, bias):
        return linear_cross_entropy(
            x, embedding, labels, bias=bias, label_smoothing=0.1, weights=weights, chunk=4
        ).loss

    expected = jax.value_and_grad(total, argnums=(0, 1, 2))(x, embedding, bias)
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        found = jax.value_and_grad(total, argnums=(0, 1, 2))(x, embedding, bias)
        assert {of.dtype for of in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        doubles = [np.asarray(of, np.float64) for of in (x, embedding, bias)]
        exact = jax.value_and_grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, doubles))
        assert {of.dtype for of in jax.tree.leaves(exact)} == {jnp.dtype(jnp.float64)}
    for one in (found, exact):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, expected
        )
