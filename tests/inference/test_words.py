# SPDX-License-Identifier: Apache-2.0
"""Words of a text and pieces of it: every piece stands in the word that has its characters."""

import json
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece

from tests.formats.peers import write_vocabulary
from tests.tiny_models import tiny_vocabulary
from transformer_jax.data.batch import EOS
from transformer_jax.data.vocabulary import MarianVocabulary, Vocabulary
from transformer_jax.inference.words import align_words, words_of_ids, words_of_text


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Vocabulary:
    return tiny_vocabulary(tmp_path_factory.mktemp("own") / "vocabulary.model")


@pytest.fixture(scope="module")
def marian(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("marian")
    write_vocabulary(folder)
    table = json.loads((folder / "vocab.json").read_text())
    return MarianVocabulary(
        *((folder / name).read_bytes() for name in ("source.spm", "target.spm")), table
    )


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory) -> Vocabulary:
    """With bytes for what it has no piece, and sentencepiece's usual normalisation."""
    path = tmp_path_factory.mktemp("bytes") / "vocabulary.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ein Hund", "zwei Hunde", "the dog"] * 9),
        model_prefix=str(path.with_suffix("")), vocab_size=274, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return Vocabulary.load(path)


LETTERS = [
    "a",
    "b",
    "H",
    "Hund",
    "zwei",
    "the",
    ".",
    "Ω",
    "😀",
    "\u00bd",
    "\ufb01",
    "\uff12",
    "a\u0308",
]
OTHERS = [" ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "\u2581", ">>deu<<", "\x1f", "\x85"]
texts = st.lists(st.sampled_from(LETTERS + OTHERS), min_size=1, max_size=12).map(
    lambda parts: "".join(parts).strip()
)


@pytest.mark.parametrize("name", ["own", "marian", "of_bytes"])
def test_a_piece_of_a_text_stands_in_the_word_with_its_characters(request, name):
    vocabulary = request.getfixturevalue(name)

    @hypothesis.given(texts)
    def check(text):
        words = text.split()
        for split, encode in (
            (vocabulary.split, vocabulary.encode),
            (vocabulary.split_targets, vocabulary.encode_targets),
        ):
            found = words_of_text(text, split)
            [pieces], [ids] = split([text]), encode([text])
            assert len(found) == len(pieces) == len(ids) - 1
            for piece, numbers in zip(pieces, found, strict=True):
                assert bool(numbers) or not words
                there = "".join(words[number] for number in numbers)
                known = unicodedata.normalize("NFKD", piece.replace("\u2581", " "))
                if not known.startswith("<0x"):  # a byte is no character
                    assert set("".join(known.split())) <= set(unicodedata.normalize("NFKD", there))

    check()


@pytest.mark.parametrize("name", ["own", "marian", "of_bytes"])
def test_ids_of_any_kind_stand_in_words_of_their_text(request, name):
    """Also such as no text is encoded to: spaces alone, unknown ones, bytes of no character."""
    vocabulary = request.getfixturevalue(name)

    @hypothesis.given(st.lists(st.integers(EOS + 1, vocabulary.size - 1), min_size=1, max_size=12))
    def check(ids):
        [text] = vocabulary.decode([ids])
        words = text.split()
        found = words_of_ids(ids, vocabulary.decode)
        assert len(found) == len(ids)
        assert {number for numbers in found for number in numbers} == set(range(len(words)))
        assert found == sorted(found) or not words
        for token, numbers in zip(ids, found, strict=True):
            ink = "".join(vocabulary.pieces_of([token])[0].split("\u2581"))
            if "<" not in ink:
                assert ink in "".join(words[number] for number in numbers)

    check()


def test_words_worked_out_by_hand(own):
    def split(texts):
        pieces = {"a b\u00a0c\td": ["▁a", "▁", "b", "\u00a0c\t", "d"]}
        return [pieces.get(text, [f"▁{text}"]) for text in texts]

    assert words_of_text("a b\u00a0c\td", split) == [(0,), (1,), (1,), (2,), (3,)]
    across = {"New York": ["▁New▁Yo", "rk▁"], "New": ["▁New"], "York": ["▁York"]}
    assert words_of_text("New York", lambda texts: [across[text] for text in texts]) == [
        (0, 1),
        (1,),
    ]
    assert words_of_text("", lambda texts: [[] for _ in texts]) == []


@pytest.mark.parametrize(
    ("source", "target", "looked_at", "pairs"),
    [
        ([(0,), (1,)], [(0,), (1,)], [1, 0], [(1, 0), (0, 1)]),
        ([(0,), (0,), (1,)], [(0,), (0,), (1,)], [0, 2, 1], [(0, 0), (1, 0), (0, 1)]),
        ([(0, 1)], [(0,), (0, 1)], [0, 0], [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ([(0,)], [], [], []),
        ([(0,)], [()], [0], []),
    ],
)
def test_words_are_aligned_through_their_pieces(source, target, looked_at, pairs):
    assert align_words(source, target, looked_at) == tuple(pairs)
