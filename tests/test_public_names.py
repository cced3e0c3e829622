# SPDX-License-Identifier: Apache-2.0
"""The public names as another project uses them: each from outside, and no other module of ours."""

import importlib
import math
import re
from pathlib import Path

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import transformer_jax
from transformer_jax import (
    Batch,
    BeamResult,
    DecodeConfig,
    Decoder,
    DropoutRng,
    Encoder,
    Ensemble,
    Hypothesis,
    MultiHeadAttention,
    Sampling,
    SearchOptions,
    Tokens,
    Transformer,
    TransformerConfig,
    Translator,
    UserError,
    Vocabulary,
    beam_search,
    length_penalty,
    line_keys,
    sample,
)

CONFIG = TransformerConfig(
    vocab_size=30, max_length=16, num_layers=2, d_model=16, d_ff=24, num_heads=2, d_k=8, d_v=4
)
ROOT = Path(__file__).parents[1]
IDS = jnp.array([[5, 9, 7, 1, 0, 0], [8, 6, 1, 0, 0, 0], [3, 4, 11, 12, 13, 1]])


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, rngs=nnx.Rngs(0))


def test_every_name_is_listed_and_used_here():
    for name in transformer_jax.__all__:
        assert getattr(transformer_jax, name) is globals()[name], name
        assert getattr(transformer_jax, name).__doc__
    assert set(transformer_jax.__all__) == set(transformer_jax._HOMES) <= set(dir(transformer_jax))
    with pytest.raises(AttributeError, match="no attribute 'Transfomer'"):
        transformer_jax.Transfomer  # noqa: B018


def test_the_training_loop_of_the_readme_learns_with_dropout():
    """Word for word: public names alone, at most 25 lines, and better than guessing by far."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [code] = [block for block in blocks if "DropoutRng" in block]
    assert len([line for line in code.splitlines() if line]) <= 25
    for home, names in re.findall(r"from (\w+) import (.*)", code):
        if home in ("transformer_jax", "attention_kernels"):
            assert set(names.split(", ")) <= set(importlib.import_module(home).__all__)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    model, tokens = scope["model"], scope["tokens"]
    batch = Batch(tokens, tokens, jnp.arange(len(tokens.ids)))
    assert float(scope["loss"]) < 0.5 * math.log(20), "no better than guessing"
    with pytest.raises(ValueError, match="in training mode"):
        model(batch)
    model.eval()
    assert (model(batch).argmax(-1) == tokens.ids).mean() > 0.5

    # What is said of seeds there.
    def hidden(rng):
        return np.asarray(model.hidden(batch, rng=rng))

    first, seed = DropoutRng.of_step(0, 7, batch.rows), attention_kernels.fold_in(0, 7)
    np.testing.assert_array_equal(hidden(first), hidden(DropoutRng(seed, batch.rows)))
    others = [
        DropoutRng.of_step(0, 8, batch.rows),
        DropoutRng(attention_kernels.fold_in(seed, 1), batch.rows),
        first.fold_in(1),
    ]
    assert all((hidden(first) != hidden(other)).any() for other in others)


@pytest.mark.slow  # mypy reads all of JAX
def test_a_type_checker_of_another_project_knows_the_names(tmp_path):
    """Types travel: a wrong argument is found, and no name is Any."""
    mypy = pytest.importorskip("mypy.api")
    (tmp_path / "stranger.py").write_text(
        "from transformer_jax import Transformer, TransformerConfig, Translator, beam_search\n"
        "from transformer_jax import Tokens, Transfomer\n"
        "from flax import nnx\n"
        "Tokens.of([[5, 9, 1], [8, 1, 0]])\n"
        "model = Transformer(TransformerConfig(d_model='wide'), rngs=nnx.Rngs(0))\n"
        "reveal_type(Translator.from_workdir('runs/demo').translate(['A dog.']))\n"
        "reveal_type(beam_search)\n"
    )
    out, _, _ = mypy.run(
        [
            str(tmp_path / "stranger.py"),
            *("--config-file", str(ROOT / "pyproject.toml"), "--follow-imports=silent"),
            *("--cache-dir", str(tmp_path / "cache")),
        ]
    )
    assert 'Argument "d_model" to "ModelConfig" has incompatible type "str"' in out, out
    assert 'has no attribute "Transfomer"' in out and "Tokens" not in out, out
    assert "list[str]" in out and "-> transformer_jax.inference.beam_search.BeamResult" in out, out


@pytest.mark.slow  # README's loop is another
def test_a_transformer_trains_in_someone_else_s_loop(model):
    source, target = Tokens.of(IDS), Tokens.of(IDS[::-1])
    batch = Batch(source, target, jnp.arange(3))
    structure, params = nnx.split(model, nnx.Param)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, number):
        def loss(params):
            rng = DropoutRng.of_step(0, number, batch.rows)
            logits = nnx.merge(structure, params)(batch, rng=rng)  # [B, T, VOCAB]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target.ids)
            return jnp.sum(losses * (target.segments > 0)) / jnp.sum(target.segments > 0)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    losses = []
    for number in range(20):
        params, state, value = step(params, state, number)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


def test_encoder_and_decoder_are_the_transformer_s_middle(model):
    source, target = Tokens.of(IDS), Tokens.of(IDS[:, :4])
    x = jax.random.normal(jax.random.key(0), (3, 6, 16))
    y = jax.random.normal(jax.random.key(1), (3, 4, 16))
    encoder, decoder = Encoder(CONFIG, rngs=nnx.Rngs(1)), Decoder(CONFIG, rngs=nnx.Rngs(2))
    memory = nnx.jit(lambda m, x: m(x, source.segments))(encoder, x)
    out = nnx.jit(lambda m, y, memory: m(y, memory, target.segments, source.segments))(
        decoder, y, memory
    )
    assert memory.shape == (3, 6, 16) and out.shape == (3, 4, 16)
    assert isinstance(model.encoder, Encoder) and isinstance(model.decoder, Decoder)
    assert len(encoder) == len(decoder) == 2 and encoder[0].self_attention is not None
    # Padding shows nothing: other vectors behind a sentence's end change nothing before it.
    other = x.at[1, 3:].set(7.0)
    again = nnx.jit(lambda m, x: m(x, source.segments))(encoder, other)
    np.testing.assert_allclose(again[1, :3], memory[1, :3], atol=1e-5)


def test_the_names_of_the_parameters_are_those_of_checkpoints(model):
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert set(params) == {"embedding", "encoder", "decoder"}
    assert set(params["encoder"]) == set(params["decoder"]) == {0, 1}
    assert {"self_attention", "feed_forward"} < set(params["encoder"][0])


def test_attention_is_that_of_flax():
    """Flax's own attention with the same weights; d_v = d_k, without which it can do nothing."""
    config = TransformerConfig(d_model=16, num_heads=2, d_k=8, d_v=8)
    ours = MultiHeadAttention(config, jnp.float32, rngs=nnx.Rngs(0))
    theirs = nnx.MultiHeadAttention(2, 16, decode=False, rngs=nnx.Rngs(1))
    for name in ("query", "key", "value"):
        projection = getattr(theirs, name)
        kernel = jnp.asarray(getattr(ours, name).kernel[...])
        projection.kernel[...] = kernel.reshape(projection.kernel.shape)
    theirs.out.kernel[...] = ours.out.kernel[...].reshape(theirs.out.kernel.shape)
    x, memory = jax.random.normal(jax.random.key(0), (2, 3, 5, 16))
    segments = (IDS[:, :5] != 0).astype(jnp.int32)
    out = ours(x, memory, jnp.ones((3, 5), jnp.int32), segments)
    expected = theirs(x, memory, memory, mask=(segments != 0)[:, None, None, :])
    np.testing.assert_allclose(out, expected, atol=1e-5)
    weights = ours.weights(x, memory, jnp.ones((3, 5), jnp.int32), segments)  # [B, H, T, S]
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
    assert (weights[1, :, :, 3:] == 0).all(), "padding is looked at"


def chain(ids, position, cache):
    """A hand-made language: after word n comes n + 1, or n + 2 with a third of the probability.

    4 follows the beginning, and behind 7 the sentence ends. The cache counts the words so far.
    """
    words = jnp.where(position == 0, 3, ids)[..., None]
    places = jnp.arange(10)
    logits = jnp.where(
        places == words + 1, jnp.log(3.0), jnp.where(places == words + 2, 0.0, -99.0)
    )
    end = jnp.where(places == 1, 0.0, -99.0)
    return jnp.where(words >= 7, end, logits), cache.at[:, :, position].set(1 + position)


def test_beam_search_takes_any_step_function():
    result = jax.jit(
        lambda limits: beam_search(
            chain,
            jnp.zeros((2, 4, 8), jnp.int32),
            beam_size=4,
            max_lengths=limits,
            length=8,
            alpha=0.0,
        )
    )(jnp.array([8, 3]))
    assert isinstance(result, BeamResult)
    assert result.ids[0, 0].tolist() == [4, 5, 6, 7, 1, 0, 0, 0]
    np.testing.assert_allclose(result.scores[0, 0], 4 * np.log(3 / 4), rtol=1e-4)
    assert result.lengths[0, 0] == 5 and result.lengths[1, 0] <= 3
    assert float(length_penalty(1, 0.6)) == 1.0


def test_sample_takes_any_step_function():
    keys = line_keys(0, jnp.arange(2, dtype=jnp.uint32))
    result = jax.jit(
        lambda keys: sample(
            chain,
            jnp.zeros((2, 50, 8), jnp.int32),
            keys=keys,
            samples=50,
            max_lengths=jnp.array([8, 8]),
            length=8,
            alpha=0.0,
        )
    )(keys)
    first = np.asarray(result.ids[:, :, 0])
    assert set(first.ravel()) == {4, 5}
    assert 0.6 < (first == 4).mean() < 0.9, "three quarters go on with the next word"


def test_a_transformer_is_searched_by_hand(model):
    """The loop of a stranger: encode once, then one step at a time through the cache."""
    source = Tokens.of(IDS)

    @nnx.jit
    def search(model):
        cross = model.cross_cache(model.encode(source))
        return beam_search(
            lambda ids, position, cache: model.decode_step(
                ids, position, cache, cross, source.segments
            ),
            model.empty_cache(3, 2, 8),
            beam_size=2,
            max_lengths=jnp.array([8, 8, 8]),
            length=8,
        )

    result = search(model)
    assert result.ids.shape == (3, 2, 8)
    both = Ensemble([model, Transformer(CONFIG, rngs=nnx.Rngs(1))])
    assert search(both).ids.shape == (3, 2, 8)


def test_a_translator_of_one_s_own_model(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ein Hund", "zwei Hunde", "a dog", "two dogs"] * 9),
        model_prefix=str(tmp_path / "own"),
        **{"vocab_size": 30, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        **{"hard_vocab_limit": False, "minloglevel": 2},
    )
    vocabulary = Vocabulary.load(tmp_path / "own.model")
    config = TransformerConfig(
        vocab_size=vocabulary.size, num_layers=1, d_model=8, d_ff=8, num_heads=2, d_k=4, d_v=4
    )
    translator = Translator(
        Transformer(config, rngs=nnx.Rngs(0)), vocabulary, DecodeConfig(extra_length=3), 16
    )
    options = SearchOptions(sampling=Sampling(top_k=5, seed=1), scores=True)
    [[hypothesis]] = translator.search(["a dog"], options)
    assert isinstance(hypothesis, Hypothesis)
    assert len(hypothesis.token_log_probs) == len(hypothesis.tokens) + 1
    with pytest.raises(UserError, match="n_best=9"):
        translator.search(["a dog"], SearchOptions(n_best=9))
