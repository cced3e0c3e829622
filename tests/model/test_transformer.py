# SPDX-License-Identifier: Apache-2.0
"""The model's laws: what each position may depend on, and that decoding is the same function."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from tests.conftest import random_batch
from transformer_jax.config import ModelConfig
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.model.dropout import DropoutRng
from transformer_jax.model.embeddings import Embedding
from transformer_jax.model.transformer import Encoder, Transformer

SMALL = ModelConfig(
    vocab_size=96, max_length=32, num_layers=2, d_model=24, d_ff=40, num_heads=4, d_k=6, d_v=10
)
VARIANTS = {
    "paper": SMALL,
    "pre-norm": dataclasses.replace(SMALL, norm_position="pre"),
    "learned": dataclasses.replace(SMALL, positions="learned"),
    "swish": dataclasses.replace(SMALL, activation="swish"),
}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request):
    return compiled(VARIANTS[request.param])


def compiled(config: ModelConfig) -> SimpleNamespace:
    """A model's methods as compiled functions: much faster than one operation after the other."""
    structure, params = nnx.split(Transformer(config, rngs=nnx.Rngs(1)))

    def method(name):
        function = jax.jit(lambda *args: getattr(nnx.merge(structure, params), name)(*args))
        return lambda *args: function(*args)

    names = ("hidden", "encode", "decode", "logits", "cross_cache", "decode_step")
    noisy = jax.jit(lambda batch, rng: nnx.merge(structure, params)(batch, rng=rng))
    return SimpleNamespace(
        forward=method("__call__"),
        noisy=noisy,
        params=params,
        empty_cache=nnx.merge(structure, params).empty_cache,
        **{name: method(name) for name in names},
    )


def one_sentence(ids) -> Tokens:
    ids = jnp.asarray(ids, jnp.int32)[None]
    return Tokens(ids, jnp.ones_like(ids), jnp.arange(ids.shape[1])[None])


def packed(seed: int, size: int) -> Tokens:
    """Two rows of three sentences of `size` tokens, then padding."""
    ids = np.random.default_rng(seed).integers(1, 96, (2, 17)).astype(np.int32)
    places = np.broadcast_to(np.arange(17, dtype=np.int32), ids.shape)
    real = places < 3 * size
    return Tokens(*(jnp.asarray(of * real) for of in (ids, places // size + 1, places % size)))


def replaced(tokens: Tokens, place: int, token: int) -> Tokens:
    return dataclasses.replace(tokens, ids=tokens.ids.at[0, place].set(token))


def test_logits_are_float32_and_finite(model):
    batch = random_batch(0)
    logits = model.forward(batch)
    assert logits.shape == (4, 13, 96)
    assert logits.dtype == jnp.float32
    assert np.all(np.isfinite(logits))


def test_a_target_token_changes_only_what_is_to_its_right(model):
    """Causality: were it broken, training would look into the future and decoding could not."""
    source, target = one_sentence([5, 6, 7, 1]), one_sentence([8, 9, 10, 11, 1])
    rows = jnp.zeros(1, jnp.int32)
    before = model.forward(Batch(source, target, rows))[0]
    for place in range(5):
        after = model.forward(Batch(source, replaced(target, place, 50), rows))[0]
        changed = np.abs(after - before).max(axis=-1) > 0
        np.testing.assert_array_equal(changed, np.arange(5) > place)


def test_every_source_token_reaches_every_target_token(model):
    source, target = one_sentence([5, 6, 7, 1]), one_sentence([8, 9, 10, 11, 1])
    rows = jnp.zeros(1, jnp.int32)
    before = model.forward(Batch(source, target, rows))[0]
    for place in range(4):
        after = model.forward(Batch(replaced(source, place, 50), target, rows))[0]
        assert np.all(np.abs(after - before).max(axis=-1) > 0)


def test_packed_sentences_are_strangers(model):
    """A row of several sentences gives the logits of each sentence alone."""
    batch = Batch(packed(3, 4), packed(4, 5), jnp.arange(2, dtype=jnp.int32))
    together = model.forward(batch)
    for row, segment in ((0, 1), (0, 2), (1, 3)):
        sides = []
        for side in (batch.source, batch.target):
            sides.append(one_sentence(side.ids[row][side.segments[row] == segment]))
        alone = model.forward(Batch(*sides, jnp.zeros(1, jnp.int32)))[0]
        inside = together[row][batch.target.segments[row] == segment]
        np.testing.assert_allclose(inside, alone, atol=2e-5)


def test_decoding_step_by_step_gives_the_logits_of_training(model):
    batch = random_batch(4, rows=3)
    source = dataclasses.replace(batch.source, segments=jnp.minimum(batch.source.segments, 1))
    ids = jax.random.randint(jax.random.key(0), (3, 2, 6), 3, 96)  # [B, W, L]
    memory = model.encode(source)
    cross, cache = model.cross_cache(memory), model.empty_cache(3, 2, 6)
    step = model.decode_step
    stepped = []
    for position in range(6):
        previous = ids[:, :, position - 1]
        logits, cache = step(previous, jnp.int32(position), cache, cross, source.segments)
        stepped.append(logits)
    stepped = np.stack(stepped, axis=2)  # [B, W, L, VOCAB]
    positions = jnp.broadcast_to(jnp.arange(6), (3, 6))
    for beam in range(2):
        target = Tokens(ids[:, beam], jnp.ones((3, 6), jnp.int32), positions)
        whole = model.logits(model.decode(target, memory, source.segments))
        np.testing.assert_allclose(stepped[:, beam], whole, atol=2e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_a_position_without_an_encoding_is_nan_and_repeats_no_other(positions):
    config = dataclasses.replace(SMALL, positions=positions)
    embedding = Embedding(config, jnp.dtype("float32"), rngs=nnx.Rngs(0))
    end = SMALL.max_length
    places = jnp.array([*range(end + 2), -1])[None]
    encodings = np.asarray(embedding.encode_positions(places, longest=end))[0]
    assert np.isfinite(encodings[:end]).all() and np.isnan(encodings[end:]).all()
    if positions == "learned":
        np.testing.assert_array_equal(encodings[:end], embedding.position_table[...])
        packed = jnp.tile(jnp.arange(end), 3)[None]  # longer than the table, but restarting
        assert jnp.isfinite(embedding.encode_positions(packed, longest=3 * end)).all()


def test_learned_positions_have_the_gradient_of_a_table():
    """Each row that of the places that look at it, by numpy; none from behind the end."""
    config = dataclasses.replace(SMALL, positions="learned")
    embedding = Embedding(config, jnp.dtype("float32"), rngs=nnx.Rngs(0))
    structure, params = nnx.split(embedding)
    places = jnp.asarray(np.random.default_rng(0).integers(0, 8, (3, 7)))
    towards = np.random.default_rng(1).standard_normal((3, 7, SMALL.d_model)).astype(np.float32)

    def loss(params):
        return (nnx.merge(structure, params).encode_positions(places, 8) * towards).sum()

    expected = np.zeros((SMALL.max_length, SMALL.d_model), np.float32)
    np.add.at(expected, np.asarray(places), towards)
    np.testing.assert_allclose(jax.grad(loss)(params).position_table[...], expected, rtol=1e-5)


def test_noise_is_a_function_of_seed_and_step_and_needs_no_order():
    model = compiled(dataclasses.replace(SMALL, attention_dropout=0.2))
    batch = random_batch(0)

    def run(seed, step):
        return np.asarray(model.noisy(batch, DropoutRng.of_step(seed, step, batch.rows)))

    first = run(0, 7)
    np.testing.assert_array_equal(first, run(0, 7))
    assert np.any(first != run(0, 8))
    assert np.any(first != run(1, 7))
    np.testing.assert_array_equal(model.forward(batch), model.forward(batch))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    rough, exact = compiled(dataclasses.replace(SMALL, dtype="bfloat16")), compiled(SMALL)
    batch = random_batch(0)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough.params)} == {jnp.dtype("float32")}
    assert rough.hidden(batch).dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.forward(batch), exact.forward(batch), atol=0.3)


def test_rematerialised_layers_have_the_same_gradient_and_need_little_memory():
    """Of six layers, by XLA's account: one's arrays and six inputs. Dropout drops the same again."""
    layers = Encoder(dataclasses.replace(SMALL, num_layers=6), rngs=nnx.Rngs(0))
    structure, weights = nnx.split(layers)
    x = jax.random.normal(jax.random.key(0), (64, 32, SMALL.d_model))
    segments, rng = jnp.ones((64, 32), jnp.int32), DropoutRng.of_step(0, 0, jnp.arange(64))

    def gradient(remat: bool) -> jax.stages.Compiled:
        def loss(weights, x):
            encoder = nnx.merge(structure, weights)
            return jnp.square(encoder(x, segments, rng=rng, remat=remat) - x).sum()

        return jax.jit(jax.grad(loss)).lower(weights, x).compile()

    again, kept = gradient(True), gradient(False)
    ours, theirs = (ravel_pytree(of(weights, x))[0] for of in (again, kept))
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    sizes = [of.memory_analysis().temp_size_in_bytes for of in (again, kept)]
    assert 0 < sizes[0] < 0.4 * sizes[1]
