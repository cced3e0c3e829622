# SPDX-License-Identifier: Apache-2.0
"""What a search computes is what the model computes, as exactly as its precision allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.config import PRECISIONS, ModelConfig
from transformer_jax.data.batch import Tokens
from transformer_jax.model.decoding import Matrix
from transformer_jax.model.transformer import Transformer

# The largest error of a product over the lengths of its two vectors.
ERRORS = {"float32": 1e-6, "int16": 5e-5, "bfloat16": 2e-3, "int8": 5e-3}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("by_row", [False, True])
def test_a_product_is_as_exact_as_its_precision(precision, by_row):
    generator = np.random.default_rng(0)
    # Rows and outputs of very different sizes: a scale for all of them would lose the small ones.
    x = generator.normal(size=(3, 2, 96)) * 10.0 ** np.arange(-3, 3).reshape(3, 2, 1)
    kernel = generator.normal(size=(96, 40)) * 10.0 ** np.linspace(-2, 2, 40)
    stored = jnp.asarray(kernel.T if by_row else kernel, jnp.float32)
    found = Matrix.of(stored, None, precision, by_row=by_row)(jnp.asarray(x, jnp.float32))
    lengths = np.linalg.norm(x, axis=-1, keepdims=True) * np.linalg.norm(kernel, axis=0)
    errors = np.abs(np.asarray(found, np.float64) - x @ kernel) / lengths
    assert errors.max() < ERRORS[precision]
    assert precision == "float32" or errors.max() > ERRORS[precision] / 30, "were they used at all?"


def test_a_row_of_zeros_is_its_bias():
    for precision in PRECISIONS:
        matrix = Matrix.of(jnp.zeros((4, 3)), jnp.arange(3.0), precision)
        assert matrix(jnp.zeros((1, 2, 4))).tolist() == [[[0.0, 1.0, 2.0]] * 2]


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_the_source_is_read_as_the_encoder_does(norm_position):
    config = ModelConfig(
        vocab_size=29,
        max_length=11,
        num_layers=2,
        d_model=24,
        d_ff=40,
        num_heads=3,
        d_k=6,
        d_v=10,
        norm_position=norm_position,
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(3, 29, (3, 7)).astype(np.int32)
    segments = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int32)
    positions = segments * np.arange(7, dtype=np.int32)
    source = jax.tree.map(jnp.asarray, Tokens(ids, segments, positions))
    expected = model.cross_cache(model.encode(source))
    for precision, tolerance in (("float32", 1e-5), ("int16", 2e-3), ("int8", 0.2)):
        found = model.read_source(source, model.search_weights(precision))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            real = segments.astype(bool)
            difference = np.abs(np.asarray(ours - theirs)).swapaxes(1, 2)[real]
            assert difference.max() < tolerance
