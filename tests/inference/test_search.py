# SPDX-License-Identifier: Apache-2.0
"""Translator.search and score: n-best, scores, alignments, prefixes, samples, ensembles."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny_models import SENTENCES, tiny_model, tiny_vocabulary
from transformer_jax.config import DecodeConfig, MeshConfig
from transformer_jax.data.batch import EOS, Batch, Tokens
from transformer_jax.errors import UserError
from transformer_jax.inference.encoding import Counts, Prefix, encode_pairs, encode_prefixes
from transformer_jax.inference.ensemble import Ensemble, log_mean
from transformer_jax.inference.forced import force
from transformer_jax.inference.hypotheses import SearchOptions, perplexity, perplexity_of
from transformer_jax.inference.padding import pad
from transformer_jax.inference.sampling import Sampling
from transformer_jax.inference.texts import texts_of, words_of
from transformer_jax.inference.translator import Translator
from transformer_jax.training.sharding import make_mesh

DECODE = DecodeConfig(beam_size=3, alpha=0.6, extra_length=5)
LINES = [SENTENCES[i] for i in (4, 0, 16, 3, 7, 30)]  # one shape of a batch
ALL = SearchOptions(n_best=3, scores=True, alignments=True)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocabulary.model")


@pytest.fixture(scope="module")
def models(vocabulary):
    """Two models of one vocabulary and different sizes, the second with positions that are learned."""
    return [
        tiny_model(vocabulary),
        tiny_model(vocabulary, 1, num_layers=1, d_ff=12, positions="learned"),
    ]


@pytest.fixture(scope="module")
def translator(models, vocabulary):
    return Translator(models[0], vocabulary, DECODE, 24)


@pytest.fixture(scope="module")
def found(translator):
    """Everything that there is to say of LINES."""
    return translator.search(LINES, ALL)


@nnx.jit
def logits_of(model, batch):
    return model(batch)


def ids_of(vocabulary, tokens):
    return [vocabulary._processor.piece_to_id(piece) for piece in tokens] + [EOS]


def test_the_best_are_in_order_and_the_first_is_the_translation(translator, found):
    assert [hypotheses[0].text for hypotheses in found] == translator.translate(LINES)
    for hypotheses in found:
        assert len(hypotheses) == 3
        assert len({entry.tokens for entry in hypotheses}) == 3
        scores = [entry.score for entry in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_scores_are_those_of_the_whole_model(models, vocabulary, found):
    """By a pass of one pair, unpadded, that shares no code with the search."""
    for line, hypothesis in zip(LINES[:2], (found[0][0], found[1][2]), strict=True):
        source = vocabulary.encode([line])[0]
        target = ids_of(vocabulary, hypothesis.tokens)
        batch = Batch(pad([source], 1, len(source)), pad([target], 1, len(target)), np.arange(1))
        log_probs = jax.nn.log_softmax(logits_of(models[0], jax.tree.map(jnp.asarray, batch))[0])
        expected = [float(log_probs[place, token]) for place, token in enumerate(target)]
        np.testing.assert_allclose(hypothesis.token_log_probs, expected, atol=1e-4)
        assert hypothesis.log_prob == pytest.approx(sum(expected), abs=1e-3)
        penalty = ((5 + len(target)) / 6) ** 0.6
        assert hypothesis.score == pytest.approx(hypothesis.log_prob / penalty)


def test_what_was_not_asked_for_is_left_out_and_changes_nothing(translator, found):
    lean = translator.search(LINES, SearchOptions(n_best=3))
    for all_said, said in zip(found, lean, strict=True):
        for full, entry in zip(all_said, said, strict=True):
            assert entry.token_log_probs is None and entry.alignment is None
            assert (entry.text, entry.tokens) == (full.text, full.tokens)
            assert entry.score == pytest.approx(full.score, abs=1e-4)
            assert entry.log_prob == pytest.approx(full.log_prob, abs=1e-3)


def test_forced_scores_are_those_of_the_search(translator, found):
    """Of the hypotheses whose text has one segmentation only: that of the search."""
    each = [(line, entry) for line, of_line in zip(LINES, found, strict=True) for entry in of_line]
    sources, targets = [line for line, _ in each], [entry.text for _, entry in each]
    said = translator.score(sources, targets, alignments=True)
    same = [
        (forced, entry)
        for forced, (_, entry) in zip(said, each, strict=True)
        if entry.tokens and forced.tokens == entry.tokens
    ]
    assert len(same) >= 1
    for forced, entry in same:
        assert forced.log_prob == pytest.approx(entry.log_prob, abs=1e-3)
        assert forced.alignment == entry.alignment


def test_pairs_with_a_blank_side_have_no_probability(translator):
    counts = Counts()
    said = translator.score(["ein Hund", " ", "dog"], ["", "dog", "runs"], counts=counts)
    assert [entry.text for entry in said] == ["", "dog", "runs"]
    assert [math.isnan(entry.log_prob) for entry in said] == [True, True, False]
    assert (counts.lines, counts.empty) == (3, 2)
    last = said[2]
    assert perplexity(said) == pytest.approx(
        math.exp(-last.log_prob / (len(last.tokens) + 1)), rel=1e-6
    )
    assert math.isnan(perplexity(said[:2]))
    assert perplexity_of(-1e6, 10) == math.inf
    with pytest.raises(UserError, match="2 sources and 1 targets are no pairs"):
        translator.score(["a", "b"], ["c"])


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_translation_begins_with_its_prefix(translator, vocabulary, beam_size):
    prefixes = ["zwei Männer", "", "the"]
    options = SearchOptions(beam_size=beam_size, n_best=beam_size, scores=True)
    found = translator.search(LINES[:3], options, prefixes=prefixes)
    free = translator.search(LINES[:3], options)
    for prefix, hypotheses in zip(prefixes, found, strict=True):
        start = vocabulary.pieces_of(vocabulary.encode([prefix])[0][:-1])
        assert all(entry.tokens[: len(start)] == start for entry in hypotheses)
        assert len({entry.tokens for entry in hypotheses}) == beam_size
    assert [entry.tokens for entry in found[1]] == [entry.tokens for entry in free[1]]
    # The search's own score counts the prefix, as the forced pass does.
    lean = dataclasses.replace(options, scores=False)
    again = translator.search(LINES[:3], lean, prefixes=prefixes)
    assert again[0][0].log_prob == pytest.approx(found[0][0].log_prob, abs=1e-3)


ODD = ["Ω  zwei Männer", "\u2028zwei Ω\u2028the 😀", "Ω", "zwei \ud83d\ude00 \ud83d", "zwei"]


def test_a_prefix_stays_as_it_is_also_what_the_vocabulary_does_not_have(translator):
    """And its words are words in alignments; half a character is U+FFFD, two halves are one."""
    counts = Counts()
    lines = [LINES[0], "A\tB\u00a0zwei  dog", "Ω dog", "a \udc00 dog", LINES[0]]
    found = translator.search(lines, ALL, prefixes=ODD, counts=counts)
    assert counts.unknown == 4, "a line counts once"
    starts = ["Ω  zwei Männer", "zwei Ω the 😀", "Ω", "zwei 😀 \ufffd", "zwei"]
    for line, start, hypotheses in zip(lines, starts, found, strict=True):
        for entry in hypotheses:
            assert entry.text.startswith(start)
            entry.text.encode()
            sources, targets = zip(*entry.alignment, strict=True)
            assert set(targets) == set(range(len(entry.text.split())))
            assert max(sources) < len(line.split())
    plain = translator.search(lines[4:], ALL, prefixes=ODD[4:])
    assert [entry.text for entry in plain[0]] == [entry.text for entry in found[4]]
    [blank] = translator.search([""], prefixes=["Ω"], counts=counts)
    assert blank[0].text == "" and counts.unknown == 4


@pytest.mark.parametrize(
    ("prefix", "rest", "text"),
    [
        ("Ω Hund", "▁the", "Ω Hund the"),
        ("Ω Hund", "the", "Ω Hundthe"),
        ("Hund Ω", "the", "Hund Ωthe"),
        ("Hund Ω", "▁the", "Hund Ω the"),
        ("Hund Ω", "", "Hund Ω"),
        ("Ω\u2028\u2028Hund", "▁the", "Ω Hund the"),
    ],
)
def test_what_follows_a_prefix_begins_a_word_or_goes_on_with_it(translator, prefix, rest, text):
    """Pieces of the letters of "the" by themselves, the first with or without its space."""
    pieces = [rest[:2], *rest[2:]] if rest.startswith("▁") else [*rest]
    ids = ids_of(translator.vocabulary, pieces)
    [start] = encode_prefixes(translator.vocabulary, [prefix], 1, 23)
    assert texts_of(translator.vocabulary, [start.ids + ids], [start]) == [text]
    words = words_of(translator.vocabulary, start.ids + ids, start)
    assert len(words) == len(start.ids + ids) - 1
    assert {number for each in words for number in each} == set(range(len(text.split())))


def test_a_prefix_of_no_piece_is_none(vocabulary, monkeypatch):
    """As a vocabulary's normalisation makes of a zero-width space."""
    monkeypatch.setattr(vocabulary.__class__, "encode_targets", lambda _, lines: [[EOS]])
    assert encode_prefixes(vocabulary, ["\u200b"], 1, 23) == [Prefix()]


def test_half_a_character_is_that_line_s_alone(translator, vocabulary):
    """In every place that takes text."""
    lines = ["a dog\ud83d", LINES[0], "\ud83d\ude00"]
    whole = ["a dog\ufffd", LINES[0], "😀"]
    assert translator.translate(lines) == translator.translate(whole)
    said, expected = (translator.score(each, each) for each in (lines, whole))
    assert [entry.log_prob for entry in said] == [entry.log_prob for entry in expected]
    assert [entry.text for entry in said] == whole
    assert encode_pairs(vocabulary, lines, lines, 24) == encode_pairs(vocabulary, whole, whole, 24)


def test_no_text_stands_twice_among_the_best(translator, vocabulary, monkeypatch):
    """The better of two segmentations stays, and another text comes after it."""
    every = translator.search(LINES[:2], SearchOptions(n_best=3))
    monkeypatch.setattr(
        vocabulary.__class__, "decode", lambda _, ids: [str(len(row) % 2) for row in ids]
    )
    for count in (2, 3):
        found = translator.search(LINES[:2], SearchOptions(n_best=count))
        for of_line, all_of_line in zip(found, every, strict=True):
            first: dict[str, object] = {}
            for entry in all_of_line:
                first.setdefault(str((len(entry.tokens) + 1) % 2), entry.tokens)
            assert [(entry.text, entry.tokens) for entry in of_line] == list(first.items())[:count]
    drawn = translator.search(LINES[:1], SearchOptions(n_best=5, sampling=Sampling()))
    assert len(drawn[0]) == 5, "samples are as they were drawn"


def test_a_prefix_may_be_longer_than_the_limit(translator):
    long = " ".join(SENTENCES[:9])
    options = SearchOptions(max_length=2)
    [hypothesis], [other] = translator.search(LINES[:2], options, prefixes=[long, ""])
    assert len(hypothesis.tokens) == 23 and len(other.tokens) <= 2
    with pytest.raises(UserError, match="1 prefixes for 2 lines"):
        translator.search(LINES[:2], prefixes=[long])


def test_max_length_is_a_limit_besides_the_usual_one(translator):
    def sizes(limit):
        found = translator.search(LINES, SearchOptions(max_length=limit))
        return [len(hypotheses[0].tokens) for hypotheses in found]

    usual = sizes(None)
    assert max(usual) > 3 and sizes(500) == usual
    assert max(sizes(3)) == 3


def test_a_blank_line_has_one_empty_translation(translator):
    found = translator.search([" ", LINES[0]], ALL, prefixes=["the", ""])
    [blank] = found[0]
    assert (blank.text, blank.tokens, blank.score, blank.log_prob) == ("", (), 0.0, 0.0)
    assert blank.token_log_probs == () and blank.alignment == ()
    assert translator.search([]) == []


def test_samples_do_not_depend_on_the_batch_and_follow_the_line_s_number(translator):
    options = SearchOptions(n_best=2, sampling=Sampling(temperature=1.5, seed=3))
    together = translator.search(LINES, options)
    alone = translator.search(LINES[4:5], options, first_line=4)
    assert [entry.tokens for entry in together[4]] == [entry.tokens for entry in alone[0]]
    elsewhere = translator.search(LINES[4:5], options)
    assert [entry.tokens for entry in elsewhere[0]] != [entry.tokens for entry in alone[0]]
    other_seed = dataclasses.replace(options, sampling=Sampling(temperature=1.5, seed=4))
    assert together != translator.search(LINES, other_seed)
    assert together == translator.search(LINES, options)


def test_a_sample_of_the_one_best_token_is_greedy_search(translator):
    samples = translator.search(LINES, SearchOptions(sampling=Sampling(top_k=1)))
    greedy = translator.search(LINES, SearchOptions(beam_size=1))
    for [drawn], [searched] in zip(samples, greedy, strict=True):
        assert drawn.tokens == searched.tokens
        assert drawn.score == pytest.approx(searched.score, abs=1e-4)


def test_an_ensemble_averages_probabilities(models, vocabulary):
    rng = np.random.default_rng(0)
    logits = [jnp.asarray(rng.normal(size=(2, 5)), jnp.float32) for _ in range(3)]
    mean = sum(jax.nn.softmax(entry) for entry in logits) / 3
    np.testing.assert_allclose(jnp.exp(log_mean(logits)), mean, rtol=1e-5)

    members = [Translator(model, vocabulary, DECODE, 24) for model in models]
    both = Translator(Ensemble(models), vocabulary, DECODE, 24)
    found = both.search(LINES[:4], ALL)
    targets = [hypotheses[0].text for hypotheses in found]
    said, *single = [who.score(LINES[:4], targets) for who in (both, *members)]
    for together, *apart in zip(said, *single, strict=True):
        # The first token's context is the same for all; later ones' too, because they are forced.
        expected = np.mean(np.exp([entry.token_log_probs for entry in apart]), axis=0)
        np.testing.assert_allclose(np.exp(together.token_log_probs), expected, rtol=1e-3)
    assert found[0][0].text != members[0].translate(LINES[:1])[0] or found != members[0].search(
        LINES[:4], ALL
    )
    lean = both.search(LINES[:4], SearchOptions(n_best=3))
    for full, entry in zip(found[0], lean[0], strict=True):
        assert full.log_prob == pytest.approx(entry.log_prob, abs=1e-3)


def test_an_ensemble_of_a_model_with_itself_is_the_model(models, vocabulary, translator):
    twins = [models[0], nnx.clone(models[0])]
    twice = Translator(Ensemble(twins), vocabulary, DECODE, 24)
    assert twice.translate(LINES) == translator.translate(LINES)


def test_eight_devices_say_the_same_as_one(models, vocabulary, translator, found):
    if jax.device_count() != 8:
        pytest.skip("needs JAX_NUM_CPU_DEVICES=8")
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    shared = Translator(models[0], vocabulary, DECODE, 24, mesh=mesh)
    shared = shared.with_params(jax.device_put(shared.params, jax.NamedSharding(mesh, jax.P())))
    options = SearchOptions(n_best=2, sampling=Sampling(seed=1))
    for one, other in (
        (found, shared.search(LINES, ALL)),
        (translator.search(LINES, options), shared.search(LINES, options)),
    ):
        for hypotheses, others in zip(one, other, strict=True):
            for left, right in zip(hypotheses, others, strict=True):
                assert (left.tokens, left.alignment) == (right.tokens, right.alignment)


def test_alignments_are_between_words_that_exist(found):
    for line, hypotheses in zip(LINES, found, strict=True):
        for hypothesis in hypotheses:
            assert hypothesis.alignment is not None
            aligned = {target for _, target in hypothesis.alignment}
            assert aligned == set(range(len(hypothesis.text.split())))
            assert all(0 <= source < len(line.split()) for source, _ in hypothesis.alignment)


@nnx.jit
def looked_at_by_hand(model, source, target):
    """The last two layers' cross-attention, through the layers of a post-norm decoder one by one."""
    memory = model.encode(source)
    x = jnp.pad(model.embedding.embed(target.ids), ((0, 0), (1, 0), (0, 0)))[:, :-1]
    x += model.embedding.encode_positions(target.positions, target.ids.shape[1])
    segments = target.segments, source.segments
    weights = []
    for layer in model.decoder:

        def itself(y, attention=layer.self_attention):
            return attention(y, y, segments[0], segments[0], causal=True)

        query = layer.self_attention_residual(x, itself, None)
        weights.append(layer.cross_attention.weights(query, memory, *segments).mean(axis=1))
        x = layer(x, memory, *segments, None)
    return (weights[-1] + weights[-2])[0]  # [T, S]


def test_a_token_is_aligned_to_what_the_last_two_layers_look_at_most(vocabulary):
    model = tiny_model(vocabulary, 9, num_layers=3)
    for layer in model.decoder:  # so that each looks at few places
        layer.cross_attention.query.kernel[...] *= 20.0
    translator = Translator(model, vocabulary, DECODE, 24)
    pairs = list(zip(*(vocabulary.encode(lines) for lines in (LINES, LINES[::-1])), strict=True))
    said = force(
        translator.params,
        pairs,
        structure=translator.structure,
        batch_tokens=256,
        aligned=True,
    )
    places = set()
    for (source, target), entry in zip(pairs, said, strict=True):
        weights = looked_at_by_hand(model, *(Tokens.of([ids]) for ids in (source, target)))
        expected = np.argmax(np.asarray(weights)[:, :-1], axis=-1)  # the source's EOS is no word
        np.testing.assert_array_equal(entry.looked_at, expected)
        places |= set(expected.tolist())
    assert len(places) > 1, "all look at the same place; nothing is tested"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_best": 4}, "n_best=4 is more than the beam keeps, beam_size=3"),
        ({"n_best": 0}, "n_best=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"min_length": -1}, "min_length=-1 is too small"),
        ({"min_length": 3, "max_length": 2}, "min_length=3 is more than max_length=2"),
        ({"beam_size": 4, "sampling": Sampling()}, "beam_size=4 has no meaning in sampling"),
    ],
)
def test_impossible_options_are_refused(translator, options, message):
    with pytest.raises(UserError, match=message):
        translator.search(LINES, SearchOptions(**options))


def test_counts_say_what_kind_of_lines_came(translator, caplog):
    counts = Counts()
    with caplog.at_level("WARNING"):
        translator.search(["", " ".join(SENTENCES), "dog 😀", "dog"], counts=counts)
    assert counts == Counts(lines=4, empty=1, cut=1, unknown=1)
    assert not caplog.text, "what is counted need not be warned of"


@pytest.fixture(scope="module")
def silent(vocabulary):
    """A model to which every sentence's end is the likeliest at once."""
    model = tiny_model(vocabulary, num_layers=1, logits_bias=True)
    model.embedding.bias[...] = model.embedding.bias[...].at[EOS].set(60.0)
    return model


def sizes(found):
    return [len(of_line[0].tokens) for of_line in found]


def test_a_line_with_text_has_a_token_at_least(silent, vocabulary):
    translator = Translator(silent, vocabulary, DECODE, 24)
    start = len(vocabulary.encode(["zwei"])[0]) - 1
    limits = [min(len(ids) + 5, 25) - 1 for ids in vocabulary.encode(LINES[:2])]
    prefixes = ["zwei", "", "zwei"]
    for least, expected in (
        (0, [start, 0, 0]),
        (1, [start, 1, 0]),
        (start + 1, [start + 1, start + 1, 0]),
        (10**12, [*limits, 0]),
    ):
        counts = Counts()
        options = SearchOptions(min_length=least)
        found = translator.search([*LINES[:2], ""], options, prefixes=prefixes, counts=counts)
        assert sizes(found) == expected
        assert (counts.empty, counts.lost) == (1, int(least == 0)), "what came out empty is counted"


@pytest.mark.filterwarnings("error")
def test_any_alpha_gives_numbers_and_larger_ones_longer_translations(silent, vocabulary):
    translator = Translator(silent, vocabulary, DECODE, 24)
    lengths = []
    for alpha in (-1e6, -50.0, 0.6, 50.0, 1e6):
        found = translator.search(LINES, SearchOptions(alpha=alpha, n_best=3))
        for hypotheses in found:
            scores = [(entry.score, entry.log_prob) for entry in hypotheses]
            assert np.isfinite(scores).all() and np.max(scores) < 0
            assert scores == sorted(scores, key=lambda pair: -pair[0])
        lengths.append(sum(len(hypotheses[0].tokens) for hypotheses in found))
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.slow  # the search is the same whatever its step function multiplies
@pytest.mark.parametrize("kind", ["int8", "int16", "ensemble", "sample"])
def test_so_does_every_kind_of_search(silent, vocabulary, kind):
    model = Ensemble([silent, nnx.clone(silent)]) if kind == "ensemble" else silent
    precision = kind if kind.startswith("int") else None
    translator = Translator(model, vocabulary, DECODE, 24, precision=precision)
    sampling = Sampling() if kind == "sample" else None
    for least in (1, 0):
        options = SearchOptions(sampling=sampling, min_length=least)
        assert sizes(translator.search([*LINES[:2], ""], options)) == [least, least, 0]
