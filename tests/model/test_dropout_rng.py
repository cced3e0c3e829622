# SPDX-License-Identifier: Apache-2.0
"""Where dropout's randomness comes from, and that nobody trains without it unawares."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from tests.conftest import random_batch
from transformer_jax.config import ModelConfig
from transformer_jax.model.attention import MultiHeadAttention
from transformer_jax.model.dropout import DropoutRng
from transformer_jax.model.layers import FeedForward
from transformer_jax.model.transformer import Decoder, Encoder, Transformer

CONFIG = ModelConfig(
    vocab_size=96, max_length=32, num_layers=1, d_model=12, d_ff=20, num_heads=2, d_k=6, d_v=4
)
FORGOTTEN = "has dropout=0.*, but no rng was given: pass rng="
BATCH = random_batch(0, rows=2, source_length=9, target_length=6)
RNG = DropoutRng.of_step(0, 1, BATCH.rows)

# What can be forgotten: each rate by itself.
RATES = {
    "dropout": dataclasses.replace(CONFIG, dropout=0.3),
    "attention_dropout": dataclasses.replace(CONFIG, dropout=0.0, attention_dropout=0.3),
    "activation_dropout": dataclasses.replace(CONFIG, dropout=0.0, activation_dropout=0.3),
}


def new_model(config: ModelConfig = RATES["dropout"]) -> Transformer:
    return Transformer(config, rngs=nnx.Rngs(0))


def gradients(model, rng=None, remat=False):
    """The ways to differentiate a model: each a function without arguments."""
    structure, params = nnx.split(model, nnx.Param)

    def loss(params):
        return jnp.square(nnx.merge(structure, params).hidden(BATCH, rng=rng, remat=remat)).sum()

    def in_a_scan(params):
        return jax.lax.scan(lambda total, _: (total + loss(params), None), 0.0, length=2)[0]

    return {
        "value_and_grad": lambda: jax.value_and_grad(loss)(params)[1],
        "grad under jit": lambda: jax.jit(jax.grad(loss))(params),
        "grad of jit": lambda: jax.grad(jax.jit(loss))(params),
        "jvp": lambda: jax.jvp(loss, (params,), (params,))[1],
        "scan": lambda: jax.grad(in_a_scan)(params),
        "checkpoint": lambda: jax.grad(jax.checkpoint(loss))(params),
        "nnx.grad": lambda: nnx.grad(lambda m: m.hidden(BATCH, rng=rng, remat=remat).sum())(model),
    }


def test_a_gradient_without_rng_is_refused_however_it_is_taken():
    for gradient in gradients(new_model()).values():
        with pytest.raises(ValueError, match="being differentiated and " + FORGOTTEN):
            gradient()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("remat", [False, True])
def test_every_rate_is_missed_in_rematerialised_layers_too(rate, remat):
    with pytest.raises(ValueError, match=FORGOTTEN):
        gradients(new_model(RATES[rate]), remat=remat)["grad under jit"]()


def test_the_parts_by_themselves_refuse_it_too():
    """Attention's dropout, by the weights and by the memory, where what comes in is constant."""
    config = dataclasses.replace(CONFIG, num_layers=1, dropout=0.0, attention_dropout=0.3)
    x, segments = jnp.ones((2, 4, config.d_model)), jnp.ones((2, 4), jnp.int32)
    attention = MultiHeadAttention(config, jnp.float32, rngs=nnx.Rngs(0))
    encoder = Encoder(config, rngs=nnx.Rngs(0))
    for part, arguments in ((attention, (x, x, segments, segments)), (encoder, (x, segments))):
        structure, params = nnx.split(part)
        with pytest.raises(ValueError, match=FORGOTTEN):
            jax.grad(lambda params: nnx.merge(structure, params)(*arguments).sum())(params)  # noqa: B023
        part(*arguments)  # evaluation
    with pytest.raises(ValueError, match=FORGOTTEN):
        jax.grad(lambda memory: attention(x, memory, segments, segments).sum())(x)


def test_a_model_in_training_mode_needs_an_rng_in_any_call():
    model = new_model()
    model.train()
    with pytest.raises(ValueError, match="in training mode and " + FORGOTTEN):
        model(BATCH)
    with pytest.raises(ValueError, match="in training mode"):
        nnx.jit(lambda model: model.encode(BATCH.source))(model)
    np.testing.assert_array_equal(model(BATCH, rng=RNG), new_model()(BATCH, rng=RNG))


def test_a_model_in_evaluation_mode_has_the_gradient_of_a_model_without_dropout():
    model = new_model()
    model.eval()
    without = new_model(dataclasses.replace(CONFIG, dropout=0.0))
    ours, theirs = (gradients(of)["grad under jit"]() for of in (model, without))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b), *map(nnx.to_pure_dict, (ours, theirs))
    )


def test_the_gradient_of_what_lies_behind_dropout_is_free():
    """A new softmax on a frozen model: nothing is differentiated that dropout would change."""
    model = new_model()
    hidden = model.hidden(BATCH)
    grads = jax.grad(lambda scale: model.logits(hidden * scale).sum())(2.0)
    assert np.isfinite(grads)


@pytest.mark.parametrize("mode", ["new", "eval"])
def test_evaluation_and_search_need_no_rng_under_jit(mode):
    model = new_model()
    if mode == "eval":
        model.eval()
    without = new_model(dataclasses.replace(CONFIG, dropout=0.0))

    @nnx.jit
    def logits_and_step(model):
        cross = model.cross_cache(model.encode(BATCH.source))
        ids, cache = jnp.zeros((2, 3), jnp.int32), model.empty_cache(2, 3, 4)
        step, _ = model.decode_step(ids, jnp.int32(0), cache, cross, BATCH.source.segments)
        return model(BATCH), step

    for ours, theirs in zip(logits_and_step(model), logits_and_step(without), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_an_rng_of_another_kind_is_refused_at_every_call(rate):
    jaxtyping.config.update("jaxtyping_disable", True)  # which only the tests have
    try:
        config = dataclasses.replace(
            CONFIG, dropout=rate, attention_dropout=rate, activation_dropout=rate
        )
        rngs, key = nnx.Rngs(0), jax.random.key(0)
        x, segments = jnp.ones((2, 5, 12)), jnp.ones((2, 5), jnp.int32)
        attention = MultiHeadAttention(config, jnp.float32, rngs=rngs)
        calls = [
            lambda: Transformer(config, rngs=rngs)(BATCH, rng=key),
            lambda: Encoder(config, rngs=rngs)(x, segments, rng=key),
            lambda: Encoder(config, rngs=rngs)(x, segments, rng=key, remat=True),
            lambda: Decoder(config, rngs=rngs)(x, x, segments, segments, rng=key),
            lambda: attention(x, x, segments, segments, rng=key),
            lambda: FeedForward(config, jnp.dtype("float32"), rngs=rngs)(x, rng=key),
        ]
        for call in calls:
            with pytest.raises(TypeError, match=r"rng is .*; it must be a DropoutRng, such as"):
                call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
