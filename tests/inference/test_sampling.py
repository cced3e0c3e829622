# SPDX-License-Identifier: Apache-2.0
"""Sampling: the distribution that is drawn from, and that a line's draws are its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.data.batch import EOS, PAD
from transformer_jax.errors import UserError
from transformer_jax.inference.beam_search import length_penalty
from transformer_jax.inference.sampling import Sampling, draw_tokens, line_keys, sample

PROBABILITIES = np.array([0.05, 0.4, 0.3, 0.2, 0.05])


def frequencies(**restriction) -> np.ndarray:
    draws = 20_000
    keys = line_keys(0, jnp.arange(draws, dtype=jnp.uint32))[:, None]
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES).astype(jnp.float32) + 2.0, (draws, 1, 5))
    tokens = jax.jit(lambda keys, logits: draw_tokens(keys, logits, **restriction))(keys, logits)
    return np.bincount(np.asarray(tokens)[:, 0], minlength=5) / draws


@pytest.mark.parametrize(
    ("restriction", "remaining"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 2]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.41}, [1, 2]),
        ({"top_p": 0.75}, [1, 2, 3]),
        ({"top_p": 1e-9}, [1]),
        ({"top_k": 2, "top_p": 0.6}, [1, 2]),
        ({"top_k": 2, "top_p": 0.5}, [1]),
    ],
)
def test_what_remains_is_drawn_as_often_as_it_is_probable(restriction, remaining):
    """top_p after top_k: 0.4 of 0.4 + 0.3 is 0.57, so top_p=0.5 needs only the first."""
    expected = np.zeros(5)
    expected[remaining] = PROBABILITIES[remaining] / PROBABILITIES[remaining].sum()
    np.testing.assert_allclose(frequencies(**restriction), expected, atol=0.015)


def draw(lines, limits, samples=3, seed=0, temperature=1.0, **options):
    """Samples of a language in which a sentence's tokens depend on the one before."""
    batch = len(lines)
    table = jnp.asarray(np.random.default_rng(1).normal(size=(7, 6)), jnp.float32)

    def step(ids, position, cache):
        return table[jnp.where(position == 0, 6, ids)], cache

    result = jax.jit(
        lambda lines, limits, seed, temperature: sample(
            step,
            (),
            keys=line_keys(seed, lines),
            samples=samples,
            temperature=temperature,
            max_lengths=limits,
            length=8,
            **options,
        )
    )(jnp.array(lines, jnp.uint32), jnp.array(limits), seed, temperature)
    assert result.ids.shape == (batch, samples, 8)
    return table, jax.device_get(result)


def test_a_line_s_samples_depend_on_its_number_and_the_seed_alone():
    _, together = draw([5, 9, 2], [8, 8, 8])
    _, alone = draw([9], [8])
    np.testing.assert_array_equal(together.ids[1], alone.ids[0])
    _, fewer = draw([9], [8], samples=2)
    np.testing.assert_array_equal(fewer.ids[0], alone.ids[0, :2])
    assert not np.array_equal(alone.ids, draw([8], [8])[1].ids), "the line's number is ignored"
    assert not np.array_equal(alone.ids, draw([9], [8], seed=1)[1].ids), "the seed is ignored"
    assert len({tuple(ids) for ids in together.ids.reshape(9, 8).tolist()}) > 3


def test_scores_are_the_model_s_whatever_the_temperature():
    table, result = draw([0, 1], [8, 5], temperature=2.0, alpha=0.6)
    log_probs = jax.nn.log_softmax(table)
    for ids, score, length in zip(
        result.ids.reshape(6, 8), result.scores.ravel(), result.lengths.ravel(), strict=True
    ):
        assert ids[length - 1] == EOS and EOS not in ids[: length - 1]
        assert (ids[length:] == PAD).all()
        before = [6, *ids[: length - 1]]
        total = sum(float(log_probs[b, t]) for b, t in zip(before, ids[:length], strict=True))
        np.testing.assert_allclose(score, total / length_penalty(int(length), 0.6), rtol=1e-5)
    assert (result.lengths[1] <= 5).all()


def test_a_low_temperature_is_greedy_and_a_prefix_is_kept():
    prefix = jnp.array([[3, 4, PAD], [PAD, PAD, PAD]])
    table, result = draw([0, 1], [8, 8], temperature=1e-4, prefix=prefix)
    assert (result.ids[0, :, :2] == [3, 4]).all()
    words, last = [], 6
    while EOS not in words and len(words) < 7:
        last = int(np.argmax(table[last]))
        words.append(last)
    np.testing.assert_array_equal(result.ids[1, :, : len(words)], [words] * 3)


def test_a_sentence_with_limit_0_gets_nothing():
    _, result = draw([0, 1], [0, 4])
    assert (result.lengths[0] == 0).all() and (result.scores[0] == -np.inf).all()
    assert (result.ids[0] == PAD).all() and (result.lengths[1] > 0).all()


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}]
)
def test_impossible_settings_are_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(UserError, match=f"{name}={value} is not allowed"):
        Sampling(**wrong)


def test_a_least_length_is_drawn_around_the_end():
    """All of the others as often as without it, in proportion; the limit wins."""
    table, free = draw([0, 1], [8, 2], samples=400)
    _, result = draw([0, 1], [8, 2], samples=400, min_length=1)
    assert (free.lengths[0] == 1).any() and (result.lengths[0] > 1).all()
    assert (result.lengths[1] <= 2).all()
    first = np.bincount(result.ids[0, :, 0], minlength=6) / 400
    expected = np.array(jax.nn.softmax(table[6].at[EOS].set(-jnp.inf)))
    np.testing.assert_allclose(first, expected, atol=0.08)
    _, longer = draw([0], [8], samples=50, min_length=7)
    assert (longer.lengths == 8).all()
