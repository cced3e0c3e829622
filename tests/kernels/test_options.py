# SPDX-License-Identifier: Apache-2.0
"""What the doors of the kernels refuse: one sentence, that names the arguments and their shapes."""

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


VECTORS = {"query": zeros(2, 5, 4, 8), "key": zeros(2, 7, 2, 8), "value": zeros(2, 7, 2, 6)}


@pytest.mark.parametrize("implementation", ["pallas", None])
@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"key": zeros(2, 9, 2, 8)}, "of the same length"),
        ({"value": zeros(2, 3, 2, 6)}, r"\(2, 5, 4, 8\), \(2, 7, 2, 8\), \(2, 3, 2, 6\)"),
        ({"key": zeros(4, 7, 2, 8)}, "the same batch"),
        ({"key": zeros(2, 7, 2, 12)}, "the same number of features"),
        ({"value": zeros(2, 7, 1, 6)}, "the same number of heads"),
        ({"key": zeros(2, 7, 3, 8), "value": zeros(2, 7, 3, 6)}, "divides that of query heads"),
        ({"key": zeros(2, 7, 8, 8), "value": zeros(2, 7, 8, 6)}, "divides that of query heads"),
        ({"query": zeros(2, 5, 8)}, "query has shape .* 4 dimensions"),
        ({"query": zeros(2, 5, 4, 8, dtype=jnp.int32)}, "query is of type int32"),
        ({"value": [[1.0]]}, "value is of type list"),
        ({"query_segments": zeros(2, 3, dtype=jnp.int32)}, r"query_segments .* \(2, 5\)"),
        ({"key_segments": zeros(2, 5, dtype=jnp.int32)}, r"key_segments .* \(2, 7\)"),
        ({"key_segments": zeros(2, 7)}, "key_segments is of dtype float32"),
        ({"query_offset": zeros(5, dtype=jnp.int32)}, r"query_offset .* \(\) or \(2,\)"),
        ({"query_offset": 0.5}, "query_offset is of dtype float"),
        ({"scale": zeros(4)}, r"scale has shape \(4,\)"),
        ({"scale": "large"}, "scale is 'large' of type str; it must be a real number"),
        ({"query_segments": [[1] * 5] * 2}, "query_segments is of type list"),
        ({"dropout_rate": None}, "dropout_rate is None of type NoneType"),
        ({"dropout_rate": True}, "dropout_rate is True of type bool"),
        ({"dropout_rate": -0.1}, "dropout_rate=-0.1; it must be a number from 0 to 1"),
        ({"dropout_rate": 1.5}, "dropout_rate=1.5"),
        ({"dropout_rate": 0.1, "dropout_seed": 0.5}, "dropout_seed is 0.5 of type float"),
        ({"dropout_rate": 0.1, "dropout_seed": -1}, "dropout_seed=-1"),
        ({"dropout_rate": 0.1, "dropout_seed": jnp.zeros(2, jnp.uint32)}, "wrap_key_data"),
        (
            {"dropout_rate": 0.1, "dropout_seed": 1, "row_ids": zeros(3, dtype=jnp.int32)},
            r"row_ids has shape \(3,\)",
        ),
    ],
)
def test_attention_refuses_what_does_not_fit(implementation, wrong, sentence):
    arguments = {**VECTORS, **wrong}
    with pytest.raises((TypeError, ValueError), match=sentence):
        attention_kernels.attention(**arguments, implementation=implementation)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"x": zeros(5, 3)}, "x has shape .* 3 dimensions"),
        ({"x": zeros(2, 5, 3, dtype=jnp.int32)}, "x is of type int32"),
        ({"row_ids": zeros(1, dtype=jnp.int32)}, r"row_ids has shape \(1,\); it must be \(2,\)"),
        ({"rate": 1.1}, "rate=1.1"),
        ({"seed": "one"}, "seed is 'one' of type str"),
    ],
)
def test_dropout_refuses_what_does_not_fit(wrong, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        attention_kernels.dropout(**{"x": zeros(2, 5, 3), "rate": 0.1, "seed": 1} | wrong)


def test_weights_of_no_keys():
    weights = attention_kernels.attention_weights(VECTORS["query"], zeros(2, 0, 2, 8))
    assert weights.shape == (2, 4, 5, 0)


def test_a_traced_rate_is_refused():
    def function(rate):
        return attention_kernels.attention(**VECTORS, dropout_rate=rate, dropout_seed=1)

    with pytest.raises(TypeError, match="dropout_rate is traced"):
        jax.jit(function)(0.1)
    with pytest.raises(TypeError, match="causal is traced"):
        jax.jit(lambda causal: attention_kernels.attention(**VECTORS, causal=causal))(True)


@pytest.mark.parametrize(
    "seed", [3, np.int64(3), jnp.uint32(3), jnp.int32(3)], ids=["int", "numpy", "uint32", "int32"]
)
def test_an_integer_of_any_kind_is_the_same_seed(seed):
    ones = jnp.ones((1, 8, 4))
    expected = attention_kernels.dropout(ones, rate=0.5, seed=jnp.uint32(3))
    found = attention_kernels.dropout(ones, rate=0.5, seed=seed)
    np.testing.assert_array_equal(found, expected)


def test_a_key_of_jax_is_a_seed_and_other_keys_are_others():
    ones = jnp.ones((1, 64, 16))
    keys = [*jax.random.split(jax.random.key(0), 2), jax.random.key(0), jax.random.key(2**31)]
    masks = [attention_kernels.dropout(ones, rate=0.5, seed=key) for key in keys]
    for i, one in enumerate(masks):
        assert 0.4 < np.mean(one == 0) < 0.6
        for other in masks[:i]:
            assert 0.4 < np.mean((one == 0) == (other == 0)) < 0.6
    traced = jax.jit(lambda key: attention_kernels.dropout(ones, rate=0.5, seed=key))(keys[0])
    np.testing.assert_array_equal(traced, masks[0])
    with pytest.raises(ValueError, match="2"):
        attention_kernels.dropout(ones, rate=0.5, seed=jax.random.split(keys[0], 2))


def test_a_folded_seed_is_another_mask():
    """A seed for each layer of each step: all of them differ, as independent masks do."""
    ones = jnp.ones((1, 64, 16))
    seeds = [
        attention_kernels.fold_in(attention_kernels.fold_in(0, s), n)
        for s in (0, 1)
        for n in (0, 1)
    ]
    masks = [
        np.asarray(attention_kernels.dropout(ones, rate=0.5, seed=seed)) == 0 for seed in seeds
    ]
    for i, one in enumerate(masks):
        assert all(0.4 < np.mean(one == other) < 0.6 for other in masks[:i])


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"embedding": zeros(11, 5)}, r"the same D .* \(7, 3\) and \(11, 5\)"),
        ({"embedding": zeros(0, 3)}, "a word at least"),
        ({"x": zeros(7, 3, dtype=jnp.int32)}, "x is of type int32"),
        ({"labels": zeros(6, dtype=jnp.int32)}, r"labels has shape \(6,\); it must be \(7,\)"),
        ({"labels": zeros(7)}, "labels is of dtype float32"),
        ({"bias": zeros(10)}, r"bias has shape \(10,\); it must be \(11,\)"),
        ({"weights": zeros(7, 1)}, r"weights has shape \(7, 1\)"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ({"chunk": -1}, "chunk=-1"),
    ],
)
def test_the_loss_refuses_what_does_not_fit(wrong, sentence):
    arguments = {"x": zeros(7, 3), "embedding": zeros(11, 3), "labels": zeros(7, dtype=jnp.int32)}
    with pytest.raises((TypeError, ValueError), match=sentence):
        attention_kernels.linear_cross_entropy(**arguments | wrong)


@pytest.mark.parametrize("implementation", ["xla", "pallas", None])
@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"residual": zeros(2, 4, 3)}, r"one shape .* \(2, 5, 3\), \(2, 4, 3\)"),
        ({"scale": zeros(4)}, r"scale and bias \[D\]"),
        ({"bias": zeros(1, 3)}, "bias has shape"),
        ({"x": zeros(2, 5, 3, dtype=jnp.int32)}, "x is of type int32"),
        ({"rate": 2.0}, "rate=2.0"),
        ({"rate": 0.1, "seed": None}, "needs a seed"),
        ({"rate": 0.1, "row_ids": zeros(5, dtype=jnp.int32)}, r"row_ids has shape \(5,\)"),
    ],
)
def test_the_end_of_a_sublayer_refuses_what_does_not_fit(implementation, wrong, sentence):
    arguments = {
        "x": zeros(2, 5, 3),
        "residual": zeros(2, 5, 3),
        "scale": zeros(3),
        "bias": zeros(3),
    }
    with pytest.raises((TypeError, ValueError), match=sentence):
        attention_kernels.dropout_add_layer_norm(
            **arguments | {"seed": 1, "implementation": implementation} | wrong
        )
