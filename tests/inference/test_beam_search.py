# SPDX-License-Identifier: Apache-2.0
"""Beam search against a search by hand: all hypotheses of tiny languages, and the same beam in plain Python.

A language here is a function from (sentence, words so far) to the log-probabilities of the next
word, so that every hypothesis has its own future. `step` knows the words so far only through the
cache: if beam search did not move the cache with the hypotheses, nothing below would hold.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data.batch import EOS, PAD
from transformer_jax.inference.beam_search import (
    beam_search,
    length_penalty,
)

ALPHAS = [0.0, 0.6, 1.0, 2.0, -0.5]


@dataclasses.dataclass(frozen=True)
class Language:
    """log_probs[sentence, number of the words so far] is a distribution over the next word."""

    vocabulary: int
    log_probs: np.ndarray  # [B, HISTORIES, VOCAB]

    @staticmethod
    def random(seed: int, batch: int, vocabulary: int, length: int, sharpness: float = 1.0):
        histories = (vocabulary**length - 1) // (vocabulary - 1)
        logits = sharpness * np.random.default_rng(seed).normal(size=(batch, histories, vocabulary))
        log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return Language(vocabulary, log_probs.astype(np.float32))

    def history(self, words: tuple[int, ...]) -> int:
        """Numbers the tuples of words in breadth-first order: () 0, (0,) 1, (1,) 2 ..."""
        number = 0
        for word in words:
            number = number * self.vocabulary + 1 + word
        return number

    def log_prob(self, sentence: int, words: tuple[int, ...]) -> np.ndarray:
        return self.log_probs[sentence, self.history(words)]


@partial(jax.jit, static_argnames=("width", "length", "results", "early_stop", "short"))
def compiled_search(
    table, limits, alpha, prefix, min_length, *, width, length, results, early_stop, short
):
    """Beam search over table [B, HISTORIES, VOCAB]; the cache is every position's history's number.

    With `short`, finished sentences leave the batch; it is the cache's length before that.
    """
    batch, _, vocabulary = table.shape

    def step(ids, position, cache, table=table):
        batch = ids.shape[0]
        before = cache["history"][:, :, jnp.maximum(position - 1, 0)]  # [B, W]
        history = jnp.where(position == 0, 0, before * vocabulary + 1 + ids)
        logits = table[jnp.arange(batch)[:, None], history]
        cache = {"history": cache["history"].at[:, :, position].set(history)}
        return logits + 3.0, cache  # log-probabilities up to a constant

    return beam_search(
        step,
        {"history": jnp.zeros((batch, width, short or length), jnp.int32)},
        beam_size=width,
        max_lengths=limits,
        length=length,
        alpha=alpha,
        results=results,
        prefix=prefix,
        min_length=min_length,
        early_stop=early_stop,
        context=table if short else None,
    )


def search(
    language: Language,
    limits,
    *,
    width,
    alpha,
    results=None,
    prefix=None,
    min_length=None,
    early_stop=True,
    short=None,
):
    return compiled_search(
        jnp.asarray(language.log_probs),
        jnp.asarray(limits, jnp.int32),
        jnp.float32(alpha),
        prefix,
        min_length,
        width=width,
        length=max(limits),
        results=results,
        early_stop=early_stop,
        short=short,
    )


def penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def score(language: Language, sentence: int, words: tuple[int, ...], alpha: float) -> float:
    """The length-penalised log-probability of words that end in EOS."""
    total = sum(language.log_prob(sentence, words[:i])[w] for i, w in enumerate(words))
    return float(total) / penalty(len(words), alpha)


def by_brute_force(language: Language, sentence: int, limit: int, alpha: float):
    """All hypotheses of at most `limit` words with EOS, best first."""
    others = [word for word in range(language.vocabulary) if word != EOS]
    everything = [
        (*words, EOS)
        for length in range(limit)
        for words in itertools.product(others, repeat=length)
    ]
    scored = [(score(language, sentence, words, alpha), words) for words in everything]
    return sorted(scored, reverse=True)


def by_hand(language: Language, sentence: int, limit: int, alpha: float, width: int):
    """The same beam search, one sentence, plain Python, without any early stop."""
    live, finished = [(0.0, ())], []
    for position in range(limit):
        candidates = [
            (total + float(log_prob), (*words, word))
            for total, words in live
            for word, log_prob in enumerate(language.log_prob(sentence, words))
        ]
        if position == limit - 1:
            candidates = [entry for entry in candidates if entry[1][-1] == EOS]
        candidates = sorted(candidates, reverse=True)[: 2 * width]
        finished += [
            (total / penalty(position + 1, alpha), words)
            for total, words in candidates
            if words[-1] == EOS
        ]
        live = [entry for entry in candidates if entry[1][-1] != EOS][:width]
    return sorted(finished, reverse=True)[:width]


def hypotheses(result, sentence: int):
    """[(score, words)] of one sentence, and checks that ids, lengths and padding agree."""
    found = []
    for ids, value, length in zip(
        result.ids[sentence], result.scores[sentence], result.lengths[sentence], strict=True
    ):
        ids, length = np.asarray(ids), int(length)
        assert (ids[length:] == PAD).all(), "something stands after the end of a hypothesis"
        if length:
            assert ids[length - 1] == EOS and EOS not in ids[: length - 1]
            found.append((float(value), tuple(int(i) for i in ids[:length])))
        else:
            assert value == -np.inf
    return found


def assert_same(found, expected):
    assert [words for _, words in found] == [words for _, words in expected]
    np.testing.assert_allclose(
        [s for s, _ in found], [s for s, _ in expected], rtol=1e-5, atol=1e-5
    )


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=seeds, alpha=st.sampled_from(ALPHAS), shape=st.sampled_from([(3, 4), (4, 3), (5, 3)]))
def test_a_wide_beam_finds_the_best_of_all_hypotheses(seed, alpha, shape):
    vocabulary, limit = shape
    language = Language.random(seed, 2, vocabulary, limit)
    width = vocabulary ** (limit - 1)  # no live hypothesis is ever dropped
    result = search(language, [limit, limit - 1], width=width, alpha=alpha, results=4)
    assert_same(hypotheses(result, 0), by_brute_force(language, 0, limit, alpha)[:4])
    assert_same(hypotheses(result, 1), by_brute_force(language, 1, limit - 1, alpha)[:4])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=seeds,
    alpha=st.sampled_from(ALPHAS),
    width=st.sampled_from([2, 3]),
    vocabulary=st.sampled_from([3, 5]),
    sharpness=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_a_narrow_beam_is_the_textbook_s(seed, alpha, width, vocabulary, sharpness):
    limits = [5, 4, 1]
    language = Language.random(seed, len(limits), vocabulary, max(limits), sharpness)
    result = search(language, limits, width=width, alpha=alpha)
    for sentence, limit in enumerate(limits):
        expected = by_hand(language, sentence, limit, alpha, width)
        assert_same(hypotheses(result, sentence), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=seeds, alpha=st.sampled_from(ALPHAS), width=st.sampled_from([2, 4]))
def test_stopping_early_changes_nothing(seed, alpha, width):
    language = Language.random(seed, 4, 3, 6, sharpness=2.0)
    limits = [6, 5, 6, 3]
    for results in (1, width):
        options = {"width": width, "alpha": alpha, "results": results}
        early = search(language, limits, **options)
        late = search(language, limits, early_stop=False, **options)
        jax.tree.map(np.testing.assert_array_equal, early, late)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, width=st.sampled_from([1, 3]), short=st.sampled_from([1, 3]))
def test_sentences_that_leave_the_batch_change_nothing(seed, width, short):
    limits = [6, 1, 4, 0, 6, 2, 5, 6, 3]
    language = Language.random(seed, len(limits), 3, 6, sharpness=2.0)
    whole = search(language, limits, width=width, alpha=0.6)
    parts = search(language, limits, width=width, alpha=0.6, short=short)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_the_best_alone_is_the_first_of_all():
    language = Language.random(0, 5, 4, 5)
    alone = search(language, [5] * 5, width=3, alpha=0.6, results=1)
    all_of_them = search(language, [5] * 5, width=3, alpha=0.6)
    assert alone.ids.shape == (5, 1, 5) and all_of_them.ids.shape == (5, 3, 5)
    np.testing.assert_array_equal(alone.ids[:, 0], all_of_them.ids[:, 0])
    np.testing.assert_array_equal(alone.scores[:, 0], all_of_them.scores[:, 0])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_search_stops_as_soon_as_nothing_can_change(alpha):
    """After the certain translation [2, EOS], a limit of 1,000 costs no more than two steps."""
    steps = []

    def step(ids, position, cache):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        wanted = jnp.where(position == 0, 2, EOS)
        logits = jnp.where(jnp.arange(4) == wanted, 20.0, -20.0)
        return jnp.broadcast_to(logits, (1, 2, 4)), cache

    result = beam_search(
        step, (), beam_size=2, max_lengths=jnp.array([1000]), length=1000, alpha=alpha, results=1
    )
    jax.effects_barrier()
    assert result.ids[0, 0, :3].tolist() == [2, EOS, PAD]
    assert len(steps) == 2


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=seeds)
def test_beam_1_is_the_greedy_rollout(seed):
    limits = [6, 3, 1]
    language = Language.random(seed, len(limits), 4, max(limits))
    result = search(language, limits, width=1, alpha=0.6)
    for sentence, limit in enumerate(limits):
        words = ()
        while EOS not in words:
            word = int(np.argmax(language.log_prob(sentence, words)))
            words = (*words, EOS if len(words) == limit - 1 else word)
        expected = [(score(language, sentence, words, 0.6), words)]
        assert_same(hypotheses(result, sentence), expected)


@pytest.mark.parametrize("width", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_sentence_s_translation_does_not_depend_on_its_batch(width):
    limits = [6, 2, 4, 6]
    language = Language.random(1, len(limits), 3, 6, sharpness=2.0)
    together = search(language, limits, width=width, alpha=0.6)
    for sentence, limit in enumerate(limits):
        alone = Language(language.vocabulary, language.log_probs[sentence : sentence + 1])
        result = search(alone, [limit], width=width, alpha=0.6)
        assert_same(hypotheses(result, 0), hypotheses(together, sentence))


@pytest.mark.parametrize("width", [1, 3])
def test_the_limit_counts_the_end_of_the_sentence(width):
    """A language that never ends a sentence by itself is cut, sentence by sentence."""

    def step(ids, position, cache):
        return jnp.broadcast_to(jnp.array([0.0, -50.0, 3.0, 1.0]), (4, width, 4)), cache

    limits = jnp.array([1, 2, 7, 0])
    result = beam_search(step, (), beam_size=width, max_lengths=limits, length=8, alpha=0.6)
    assert result.lengths[:, 0].tolist() == [1, 2, 7, 0]
    assert result.ids[2, 0].tolist() == [2, 2, 2, 2, 2, 2, EOS, PAD]
    assert (result.ids[3] == PAD).all(), "a sentence with limit 0 gets no translation"
    assert (result.scores[3] == -np.inf).all()


def test_alpha_chooses_between_short_and_long():
    """[EOS] has log-probability ln 0.4 = -0.92, [2, EOS] ln 0.3 = -1.2: alpha 3 prefers the latter."""

    def step(ids, position, cache):
        first = jnp.array([1e-9, 0.4, 0.3, 0.1])
        later = jnp.where(
            ids[..., None] == 2, jnp.array([[[0.0, 1.0, 0.0, 0.0]]]), first[None, None]
        )
        probabilities = jnp.where(position == 0, jnp.broadcast_to(first, (1, 2, 4)), later)
        return jnp.log(probabilities), cache

    def best(alpha):
        result = beam_search(
            step, (), beam_size=2, max_lengths=jnp.array([2]), length=2, alpha=alpha
        )
        return result.ids[0, 0].tolist()

    assert best(0.0) == [EOS, PAD]
    assert best(3.0) == [2, EOS]
    assert best(-3.0) == [EOS, PAD]


def test_the_length_penalty_is_equation_14_of_wu_et_al():
    assert float(length_penalty(1, 0.6)) == 1.0
    assert float(length_penalty(7, 1.0)) == 2.0
    np.testing.assert_allclose(
        length_penalty(jnp.array([13, 31]), 0.5), [3**0.5, 6**0.5], rtol=1e-6
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, alpha=st.sampled_from([0.0, 0.6, 2.0]))
def test_a_prefix_leaves_the_best_of_what_begins_with_it(seed, alpha):
    """And its probability counts; a sentence without one is searched as always."""
    language = Language.random(seed, 3, 4, 4)
    prefix = [(2,), (3, 2), ()]
    forced = jnp.array([[2, PAD], [3, 2], [PAD, PAD]])
    result = search(language, [4, 4, 4], width=64, alpha=alpha, results=4, prefix=forced)
    for sentence, start in enumerate(prefix):
        every = by_brute_force(language, sentence, 4, alpha)
        expected = [entry for entry in every if entry[1][: len(start)] == start][:4]
        assert_same(hypotheses(result, sentence), expected)


@pytest.mark.parametrize("width", [1, 2])
def test_a_prefix_that_fills_the_limit_is_all_there_is(width):
    language = Language.random(0, 1, 4, 4)
    result = search(language, [3], width=width, alpha=0.6, prefix=jnp.array([[3, 2]]))
    assert_same(hypotheses(result, 0), [(score(language, 0, (3, 2, EOS), 0.6), (3, 2, EOS))])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, alpha=st.sampled_from([0.0, 0.6, -2.0]), least=st.sampled_from([0, 1, 2, 3, 9]))
def test_a_least_length_leaves_the_best_of_what_is_as_long(seed, alpha, least):
    """With the probabilities that they have without; a sentence's own limit wins."""
    limits = [4, 4, 2]
    language = Language.random(seed, 3, 4, 4)
    forced = jnp.array([[PAD, PAD], [3, 2], [PAD, PAD]])
    options = {"alpha": alpha, "prefix": forced, "min_length": np.int32(least)}
    result = search(language, limits, width=64, results=4, **options)
    greedy = search(language, limits, width=1, **options)
    for sentence, limit in enumerate(limits):
        start = (3, 2) if sentence == 1 else ()
        every = [
            (value, words)
            for value, words in by_brute_force(language, sentence, limit, alpha)
            if len(words) > min(least, limit - 1) and words[: len(start)] == start
        ]
        assert_same(hypotheses(result, sentence), every[:4])
        words = start
        while EOS not in words:
            log_probs = np.array(language.log_prob(sentence, words))
            if len(words) < least:
                log_probs[EOS] = -np.inf
            words = (*words, EOS if len(words) == limit - 1 else int(np.argmax(log_probs)))
        assert_same(
            hypotheses(greedy, sentence), [(score(language, sentence, words, alpha), words)]
        )


def test_a_least_length_of_0_costs_nothing():
    """The compiled program is that without the argument; with 1 the loop has a comparison more."""

    def text(**options):
        def step(ids, position, cache):
            return jnp.broadcast_to(jnp.arange(64.0), (2, 4, 64)), cache

        limits = jnp.array([5, 7])
        search = partial(beam_search, step, (), beam_size=4, length=7, alpha=0.6, **options)
        return str(jax.make_jaxpr(lambda limits: search(max_lengths=limits))(limits))

    without, one = text(), text(min_length=1)
    assert text(min_length=None) == without
    for operation in ("sort", "top_k", "gather", "cumsum"):
        assert one.count(f" {operation}[") == without.count(f" {operation}["), operation


@pytest.mark.parametrize("width", [1, 4])
def test_a_certain_end_gives_way(width):
    """As of a model that wants to say nothing: EOS has all the probability at every position."""

    def step(ids, position, cache):
        return jnp.broadcast_to(jnp.array([0.0, 90.0, 1.0, 2.0]), (1, width, 4)), cache

    result = beam_search(
        step, (), beam_size=width, max_lengths=jnp.array([6]), length=6, min_length=2, never=(PAD,)
    )
    assert result.ids[0, 0].tolist() == [3, 3, EOS, PAD, PAD, PAD]
