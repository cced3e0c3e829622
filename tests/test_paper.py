# SPDX-License-Identifier: Apache-2.0
"""Fidelity: one assertion for every row of the paper's recipe (Vaswani et al. 2017).

Section and equation numbers are the paper's. Where its authors' released code decides what the text
leaves open, the comment says so.
"""

import dataclasses
import functools

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base, big
from tests.conftest import random_batch
from transformer_jax.config import Config, ModelConfig, resolve
from transformer_jax.inference.beam_search import length_penalty
from transformer_jax.model.attention import MultiHeadAttention
from transformer_jax.model.dropout import DropoutRng, dropout
from transformer_jax.model.embeddings import Embedding, sinusoids
from transformer_jax.model.layers import FeedForward, Residual
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.optimizer import learning_rate, make_optimizer

BASE: Config = resolve(base.get_config())
BIG: Config = resolve(big.get_config())
SMALL = ModelConfig(
    vocab_size=96, max_length=32, num_layers=2, d_model=24, d_ff=40, num_heads=4, d_k=6, d_v=10
)
FLOAT32 = jnp.dtype("float32")


@pytest.mark.parametrize("config", [BASE, BIG], ids=["base", "big"])
def test_sizes_table_3(config):
    sizes = dataclasses.astuple(config.model)[2:8]
    assert sizes == ((6, 512, 2048, 8, 64, 64) if config is BASE else (6, 1024, 4096, 16, 64, 64))


def test_norm_position_section_3_1():
    """LayerNorm(x + Sublayer(x)), and none after the last layer."""
    assert BASE.model.norm_position == BIG.model.norm_position == "post"
    residual = Residual(SMALL, FLOAT32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 24))
    total = np.asarray(x + jnp.sin(x), np.float64)
    mean, variance = total.mean(-1, keepdims=True), total.var(-1, keepdims=True)
    expected = (total - mean) / np.sqrt(variance + 1e-6)  # epsilon: the authors' code
    np.testing.assert_allclose(residual(x, jnp.sin, None), expected, atol=1e-5)
    assert Transformer(SMALL, rngs=nnx.Rngs(0)).encoder_norm is None


def test_scaled_dot_product_attention_equation_1():
    attention = MultiHeadAttention(SMALL, FLOAT32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 24))
    ones = jnp.ones((1, 5), jnp.int32)
    heads = []
    for h in range(4):
        q = (attention.query(x))[0, :, 6 * h : 6 * h + 6]
        k = (attention.key(x))[0, :, 6 * h : 6 * h + 6]
        v = (attention.value(x))[0, :, 10 * h : 10 * h + 10]
        heads.append(jax.nn.softmax(q @ k.T / jnp.sqrt(6.0)) @ v)
    expected = attention.out(jnp.concatenate(heads, axis=-1))
    np.testing.assert_allclose(attention(x, x, ones, ones)[0], expected, atol=1e-5)


def test_feed_forward_equation_2():
    feed_forward = FeedForward(SMALL, FLOAT32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 24))
    expand, contract = feed_forward.expand, feed_forward.contract
    hidden = np.maximum(0, x @ expand.kernel[...] + expand.bias[...])
    expected = hidden @ contract.kernel[...] + contract.bias[...]
    np.testing.assert_allclose(feed_forward(x), expected, atol=1e-5)


def test_embeddings_times_sqrt_d_section_3_4():
    embedding = Embedding(SMALL, FLOAT32, rngs=nnx.Rngs(0))
    ids = jnp.array([[3, 5]])
    expected = embedding.table[...][ids] * np.sqrt(24)
    np.testing.assert_allclose(embedding.embed(ids), expected, rtol=1e-6)
    # Initial values: N(0, D^-0.5) in the authors' code.
    table = nnx.eval_shape(lambda: Embedding(BASE.model, FLOAT32, rngs=nnx.Rngs(0))).table
    assert table.shape == (37_000, 512)
    assert abs(float(embedding.table[...].std()) - 24**-0.5) < 0.01


def test_one_matrix_for_both_embeddings_and_the_softmax_section_3_4():
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    tables = [
        path
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if 96 in leaf[...].shape
    ]
    assert tables == [("embedding", "table")]
    hidden = jnp.ones((1, 1, 24))
    expected = hidden @ model.embedding.table[...].T
    np.testing.assert_allclose(model.logits(hidden), expected, rtol=1e-5)


def test_sinusoids_section_3_5():
    table = sinusoids(50, 512)
    for position, i in ((0, 0), (7, 0), (49, 3), (49, 255)):
        angle = position / 10_000 ** (2 * i / 512)
        assert table[position, 2 * i] == pytest.approx(np.sin(angle), abs=1e-6)
        assert table[position, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-6)
    assert BASE.model.positions == BIG.model.positions == "sinusoidal"


def test_the_decoder_starts_from_the_zero_vector():
    """The authors' code: the target is shifted right, and nothing stands before it."""
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    batch = random_batch(0, rows=1)
    seen = []
    embed = model.embedding.encode_positions
    model._with_positions = lambda x, positions, longest=None: (  # type: ignore[method-assign]
        seen.append(x) or x + embed(positions, longest or positions.shape[1])
    )

    @jax.jit
    def inputs(batch):
        model(batch)
        return seen

    target = np.asarray(inputs(batch)[1])
    first = batch.target.positions == 0
    assert not np.any(target[first & (batch.target.segments > 0)])
    assert np.all(np.abs(target[batch.target.positions > 0]).max(axis=-1) > 0)


@pytest.mark.parametrize("config", [BASE, BIG], ids=["base", "big"])
def test_dropout_rates_section_5_4(config):
    assert config.model.dropout == (0.1 if config is BASE else 0.3)
    # None on the attention weights or the hidden units in the code that made the paper's numbers.
    assert config.model.attention_dropout == config.model.activation_dropout == 0.0


def test_dropout_places_section_5_4(monkeypatch):
    """On each sublayer's output (2 N + 3 N) and on both sums of embeddings and positions."""
    sums, sublayers = [], []

    def recorded(module, name, shapes):
        original = getattr(module, name)

        def function(x, *arguments, rate, **options):
            assert rate == SMALL.dropout
            shapes.append(x.shape)
            return original(x, *arguments, rate=rate, **options)

        monkeypatch.setattr(module, name, function)

    recorded(attention_kernels, "dropout", sums)
    recorded(attention_kernels, "sharded_dropout_add_layer_norm", sublayers)
    model = Transformer(SMALL, rngs=nnx.Rngs(0))
    batch = random_batch(0)
    rng = DropoutRng.of_step(0, 1, jnp.asarray(batch.rows))
    jax.eval_shape(lambda: model(batch, rng=rng))
    assert len(sums) == 2
    assert len(sublayers) == 5 * SMALL.num_layers
    assert set(sums) == set(sublayers) == {(4, 17, 24), (4, 13, 24)}


@pytest.mark.parametrize("position", ["post", "pre"])
def test_dropout_before_the_sum_section_5_4(position):
    """LayerNorm(x + Dropout(Sublayer(x))): before it is added and normalised."""
    config = dataclasses.replace(SMALL, norm_position=position)
    residual = Residual(config, FLOAT32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 7, config.d_model))
    rng = DropoutRng.of_step(0, 1, jnp.arange(4))
    out = residual(x, lambda y: 2 * y, rng)
    if position == "post":
        expected = residual.norm(x + dropout(2 * x, config.dropout, rng))
    else:
        expected = x + dropout(2 * residual.norm(x), config.dropout, rng)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert np.abs(out - residual(x, lambda y: 2 * y, None)).max() > 0.1, "nothing was dropped"


@pytest.mark.parametrize("config", [BASE, BIG], ids=["base", "big"])
def test_adam_section_5_3(config):
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-9)
    # The second update of one weight, from the formulas of Kingma and Ba.
    tx = make_optimizer(optimizer, config.model.d_model)
    weight, state, grads = jnp.float32(0), None, (0.5, -0.2)
    state = tx.init(weight)
    for grad in grads:
        update, state = tx.update(jnp.float32(grad), state, weight)
    m = (0.1 * 0.9 * grads[0] + 0.1 * grads[1]) / (1 - 0.9**2)
    v = (0.02 * 0.98 * grads[0] ** 2 + 0.02 * grads[1] ** 2) / (1 - 0.98**2)
    rate = config.model.d_model**-0.5 * 2 * 4000**-1.5
    assert float(update) == pytest.approx(-rate * m / (np.sqrt(v) + 1e-9), rel=1e-4)


@pytest.mark.parametrize("step", [1, 10, 3999, 4000, 4001, 100_000])
def test_learning_rate_equation_3(step):
    assert BASE.optimizer.warmup_steps == BIG.optimizer.warmup_steps == 4000
    expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
    assert float(learning_rate(step, BASE.optimizer, 512)) == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_section_5_4():
    assert BASE.train.label_smoothing == BIG.train.label_smoothing == 0.1


def test_batches_and_vocabulary_section_5_1():
    for config in (BASE, BIG):
        assert config.data.batch_tokens == 25_000
        assert config.data.vocab_size == 37_000
        assert config.data.vocab_type == "bpe"
        assert config.data.max_length == 256


def test_steps_and_averaging_section_6_1():
    assert (BASE.train.num_steps, BASE.train.keep) == (100_000, 5)
    assert (BIG.train.num_steps, BIG.train.keep) == (300_000, 20)
    # Every 10 minutes: at 0.4 and 1.0 seconds a step, table 1.
    assert BASE.train.checkpoint_every * 0.4 == BIG.train.checkpoint_every * 1.0 == 600


def test_beam_search_section_6_1():
    for config in (BASE, BIG):
        decode = config.decode
        assert (decode.beam_size, decode.alpha, decode.extra_length) == (4, 0.6, 50)


def test_length_penalty_wu_et_al_equation_14():
    for length in (1, 7, 100):
        expected = ((5 + length) / 6) ** 0.6
        assert float(length_penalty(length, 0.6)) == pytest.approx(expected, rel=1e-5)


# Table 3: what each row changes, and its printed number of parameters in millions.
TABLE_3 = {
    "base": ({}, 65),
    "B 16": ({"d_k": 16}, 58),
    "B 32": ({"d_k": 32}, 60),
    "C N 2": ({"num_layers": 2}, 36),
    "C N 4": ({"num_layers": 4}, 50),
    "C N 8": ({"num_layers": 8}, 80),
    "C d_model 256": ({"d_model": 256, "d_k": 32, "d_v": 32}, 28),
    "C d_model 1024": ({"d_model": 1024, "d_k": 128, "d_v": 128}, 168),
    "C d_ff 1024": ({"d_ff": 1024}, 53),
    "C d_ff 4096": ({"d_ff": 4096}, 90),
}


@functools.cache
def parameters(config: ModelConfig) -> int:
    """The number of parameters, without making one."""
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def parameters_by_layer(config: ModelConfig) -> int:
    """The same from models of one layer and of two, which are made in a third of the time."""
    one, two = (parameters(dataclasses.replace(config, num_layers=number)) for number in (1, 2))
    return one + (config.num_layers - 1) * (two - one)


@pytest.mark.parametrize("config", [BASE.model, BIG.model], ids=["base", "big"])
def test_every_layer_has_as_many_parameters(config):
    assert parameters(config) == parameters_by_layer(config)


@pytest.mark.parametrize("row", TABLE_3)
def test_parameters_table_3(row):
    """A vocabulary of 40,960 explains the printed column to within a million."""
    changes, millions = TABLE_3[row]
    config = dataclasses.replace(BASE.model, vocab_size=40_960, **changes)
    assert abs(parameters_by_layer(config) / 1e6 - millions) < 1


@pytest.mark.parametrize("heads, width", [(1, 512), (4, 128), (16, 32), (32, 16)])
def test_rows_a_of_table_3_have_the_parameters_of_base(heads, width):
    config = dataclasses.replace(BASE.model, num_heads=heads, d_k=width, d_v=width)
    assert parameters_by_layer(config) == parameters(BASE.model)


def test_big_has_more_parameters_than_any_vocabulary_explains():
    """Printed: 213 million. With 37,000 pieces and biases it is 214.2, with 40,960 it is 218.3."""
    assert parameters(BIG.model) / 1e6 == pytest.approx(214.2, abs=0.1)
    larger = dataclasses.replace(BIG.model, vocab_size=40_960)
    assert parameters_by_layer(larger) / 1e6 == pytest.approx(218.3, abs=0.1)


def test_learned_positions_row_e_of_table_3():
    config = dataclasses.replace(SMALL, positions="learned")
    embedding = Embedding(config, FLOAT32, rngs=nnx.Rngs(0))
    table = embedding.position_table[...]
    np.testing.assert_array_equal(embedding.encode_positions(jnp.array([[2]]), 9)[0, 0], table[2])
