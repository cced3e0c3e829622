# SPDX-License-Identifier: Apache-2.0
"""The translator around the search: what goes in and comes out, and that the model's cache is right.

The models here are random. What they say is nonsense, but it has to be the same nonsense whether it
is computed with or without cache, alone or in a batch, on one device or on eight.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from tests.tiny_models import SENTENCES, tiny_model, tiny_vocabulary
from transformer_jax.config import DecodeConfig, MeshConfig
from transformer_jax.data.batch import EOS, Batch
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.errors import UserError
from transformer_jax.formats import stablehlo
from transformer_jax.inference import scores
from transformer_jax.inference import translator as translator_module
from transformer_jax.inference.beam_search import beam_search, length_penalty
from transformer_jax.inference.padding import pad
from transformer_jax.inference.translator import Translator
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.sharding import make_mesh

DECODE = DecodeConfig(beam_size=3, alpha=0.6, extra_length=5)
LINES = [SENTENCES[i] for i in (5, 0, 17, 3, 8, 30, 22, 1, 2)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    """64 pieces."""
    return tiny_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocabulary.model")


@pytest.fixture(scope="module")
def model(vocabulary) -> Transformer:
    """Of sinusoidal positions."""
    return tiny_model(vocabulary)


@pytest.fixture(scope="module")
def translator(model, vocabulary) -> Translator:
    """Beam 3, at most 5 tokens more than the source."""
    return Translator(model, vocabulary, DECODE, max_length=24)


@partial(jax.jit, static_argnames="structure")
def _logits(params, batch, *, structure):
    return nnx.merge(structure, params)(batch)


def teacher_forced(translator, source, target):
    """The log-probabilities of the word at each place of `target`, without any cache."""
    batch = Batch(pad([source], 1, 24), pad([target], 1, 32), np.arange(1))
    logits = _logits(translator.params, batch, structure=translator.structure)
    return np.asarray(jax.nn.log_softmax(logits[0, : len(target)]))


def test_an_unknown_precision_is_named(model, vocabulary):
    with pytest.raises(UserError, match="'float23' is not one of float32, int16"):
        Translator(model, vocabulary, DECODE, max_length=24, precision="float23")


def test_greedy_search_with_the_cache_is_the_argmax_of_the_whole_model(translator):
    for line in LINES[:3]:
        source = translator.vocabulary.encode([line])[0]
        limit, output = len(source) + DECODE.extra_length, []
        while EOS not in output:
            log_probs = teacher_forced(translator, source, [*output, EOS])
            best = int(np.argmax(log_probs[len(output)]))
            output.append(EOS if len(output) == limit - 1 else best)
        expected = translator.vocabulary.decode([output])[0]
        assert translator.translate([line], beam_size=1) == [expected]


def test_the_scores_of_a_beam_are_those_of_the_whole_model(translator):
    """So the cache moved with the hypotheses, and the cross-attention saw the right source."""
    sources = translator.vocabulary.encode(LINES[:4])

    @jax.jit
    def search(params, source):
        model = nnx.merge(translator.structure, params)
        cross = model.cross_cache(model.encode(source))
        return beam_search(
            lambda ids, position, cache: model.decode_step(
                ids, position, cache, cross, source.segments
            ),
            model.empty_cache(4, 3, 12),
            beam_size=3,
            max_lengths=jnp.array([12, 3, 9, 12]),
            length=12,
            alpha=0.6,
        )

    result = search(translator.params, pad(sources, 4, 24))
    for sentence, source in enumerate(sources):
        assert len({tuple(ids) for ids in result.ids[sentence].tolist()}) == 3
        for ids, score, length in zip(
            result.ids[sentence], result.scores[sentence], result.lengths[sentence], strict=True
        ):
            target = ids[: int(length)].tolist()
            log_probs = teacher_forced(translator, source, target)
            total = sum(log_probs[place, token] for place, token in enumerate(target))
            np.testing.assert_allclose(score, total / length_penalty(len(target), 0.6), rtol=1e-4)


def test_every_line_has_its_own_translation_in_order(translator):
    together = translator.translate(LINES)
    assert together == [translator.translate([line])[0] for line in LINES]
    assert len(set(together)) > 3, "the model says the same whatever the source"


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u3000", "\r"])
def test_a_blank_line_stays_empty(translator, blank):
    assert translator.translate([blank]) == [""]
    assert translator.translate([blank, LINES[0], blank])[::2] == ["", ""]


def test_the_edges_of_a_line_do_not_matter(translator):
    assert translator.translate([f"  {LINES[0]} \r"]) == translator.translate([LINES[0]])


def test_no_lines_have_no_translations(translator):
    assert translator.translate([]) == []


def test_an_over_long_line_is_cut_with_a_warning(translator, caplog):
    long = " ".join(SENTENCES)
    with caplog.at_level("WARNING"):
        result = translator.translate([long, LINES[0]])
    assert "1 of 2 lines have more than 24 tokens" in caplog.text
    assert result[1] == translator.translate([LINES[0]])[0]
    assert translator.translate([long + " " + long]) == result[:1], "more was read than 24 tokens"


def test_a_line_of_100_000_characters_gets_a_line(translator):
    assert len(translator.translate(["Hund " * 20_000])) == 1
    assert len(translator.translate(["x" * 100_000])) == 1


def test_a_translation_is_one_line_whatever_the_vocabulary_says(translator, monkeypatch):
    breaks = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    monkeypatch.setattr(
        translator.vocabulary.__class__, "decode", lambda _, ids: [f"a{breaks}b\xa0c"] * len(ids)
    )
    assert translator.translate([LINES[0]]) == ["a b\xa0c"]


def test_the_length_limit_is_that_of_the_source(translator, vocabulary, monkeypatch):
    limits = []
    original = translator_module.translate_batch

    def spy(params, source, limit, *arguments, **options):
        limits.extend(limit.tolist())
        return original(params, source, limit, *arguments, **options)

    monkeypatch.setattr(translator_module, "translate_batch", spy)
    translator.translate([LINES[0]])
    assert limits[0] == len(vocabulary.encode([LINES[0]])[0]) + DECODE.extra_length
    assert not any(limits[1:]), "rows without a sentence are searched"


def test_other_weights_need_no_compilation(translator, model, vocabulary):
    other = tiny_model(vocabulary, seed=1)
    params = nnx.to_pure_dict(nnx.state(other, nnx.Param))
    before = translator.translate(LINES)
    compiled = translator_module.translate_batch._cache_size()
    after = translator.with_params(params).translate(LINES)
    assert translator_module.translate_batch._cache_size() == compiled
    assert after == Translator(other, vocabulary, DECODE, 24).translate(LINES) != before
    assert translator.translate(LINES) == before, "with_params changed the translator itself"


def test_eight_devices_translate_like_one(translator, model, vocabulary):
    if jax.device_count() != 8:
        pytest.skip("needs JAX_NUM_CPU_DEVICES=8")
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    shared = Translator(model, vocabulary, DECODE, 24, mesh=mesh)
    params = jax.device_put(shared.params, jax.NamedSharding(mesh, jax.P()))
    assert shared.with_params(params).translate(LINES) == translator.translate(LINES)


def test_learned_positions_end_with_their_table(vocabulary):
    """Also for a source that is longer than they, whatever the translator was told."""
    model = tiny_model(vocabulary, positions="learned")  # of 24
    long = [" ".join(SENTENCES), LINES[0]]
    translations, scores = [], []
    for max_length in (24, 10_000):
        learned = Translator(model, vocabulary, DecodeConfig(), max_length)
        translations.append(learned.translate(long))
        scores.append([said.log_prob for said in learned.score(long, long)])
    assert translations[0] == translations[1] and scores[0] == scores[1]
    assert np.isfinite(scores[0]).all()
    for line in translations[0]:
        assert line and len(vocabulary.encode([line])[0]) <= 24 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beam_size": 0}, "beam_size=0"), ({"alpha": float("nan")}, "alpha=nan")],
)
def test_impossible_settings_are_refused(translator, options, message):
    with pytest.raises(UserError, match=message):
        translator.translate(LINES, **options)


@pytest.fixture
def unchecked():
    """No types are checked but by ourselves, as in any program that is not a test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_one_str_is_no_list_of_lines(translator, vocabulary, tmp_path):
    """Or else it is translated letter by letter."""
    line, lines = "a dog", ["a dog"]
    calls = {
        "lines": [
            lambda: translator.translate(line),
            lambda: translator.search(line),
            lambda: translator.translate(b"a dog"),
        ],
        "prefixes": [lambda: translator.search(["a"] * 5, prefixes="ein H")],
        "sources": [lambda: translator.score(line, lines * 5)],
        "targets": [lambda: translator.score(lines * 5, line)],
        "sentences": [
            lambda: vocabulary.encode(line),
            lambda: vocabulary.encode_targets(line),
            lambda: train_vocabulary(line, size=64, kind="bpe", path=tmp_path / "v"),
        ],
        "hypotheses": [lambda: scores.score(line, lines * 5)],
        "references": [lambda: scores.score(lines * 5, line)],
        "platforms": [lambda: stablehlo.export_folder(tmp_path, tmp_path, platforms="cpu")],
    }
    for name, attempts in calls.items():
        for attempt in attempts:
            with pytest.raises(UserError, match=f"^{name} is one (str|bytes); give a list"):
                attempt()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "said"), [(None, "None of type NoneType"), (b"dog", "b'dog' of type bytes")]
)
def test_what_is_no_str_is_named(translator, vocabulary, tmp_path, wrong, said):
    lines, good = ["a dog", wrong], ["a dog", "two dogs"]
    calls = {
        "lines": [lambda: translator.translate(lines), lambda: translator.search(lines)],
        "prefixes": [lambda: translator.search(good, prefixes=lines)],
        "targets": [lambda: translator.score(good, lines)],
        "sentences": [
            lambda: vocabulary.encode(lines),
            lambda: train_vocabulary(iter(lines), size=64, kind="bpe", path=tmp_path / "v"),
        ],
        "hypotheses": [lambda: scores.score(lines, good)],
    }
    for name, attempts in calls.items():
        for attempt in attempts:
            message = re.escape(f"{name}[1] is {said}; it must be a str")
            with pytest.raises(UserError, match=message):
                attempt()


def test_alpha_and_beam_size_are_the_config_s_unless_given(translator):
    assert translator.translate(LINES) == translator.translate(LINES, beam_size=3, alpha=0.6)
    assert translator.translate(LINES) != translator.translate(LINES, beam_size=1)
