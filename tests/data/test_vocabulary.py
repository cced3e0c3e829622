# SPDX-License-Identifier: Apache-2.0
"""Sentence pieces give back what was encoded, and are the same every time."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from transformer_jax.data.batch import EOS, PAD, UNKNOWN
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.errors import UserError

TEXT = "Mann Frau Kinder blauen Himmel spielen laufen neben dem alten Haus girl woman running"
SENTENCES = [
    "Zwei junge weiße Männer sind im Freien .",
    "Two young , White males are outside near many bushes !",
    "a man in a &quot; blue &quot; shirt can &apos;t swim",
    "Prix : 12,50 € à l'École ½",
    "m² of a field, ① and CO₂ stay as they are",
    "It's 5 o'clock, \"quoted\" (bracketed) [twice].",
    *(f"{first} {second} {first.lower()}" for first in TEXT.split() for second in TEXT.split()),
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A vocabulary of the sentences above, of either kind."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_vocabulary(SENTENCES, size=120, kind=request.param, path=path)


def test_decoding_gives_back_what_was_encoded(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode(vocabulary.encode(SENTENCES)) == SENTENCES


def test_every_sentence_ends_with_eos_and_has_no_unknown_character(vocabulary: Vocabulary) -> None:
    for ids in vocabulary.encode(SENTENCES):
        assert ids[-1] == EOS
        assert not {PAD, EOS, UNKNOWN} & set(ids[:-1])
        assert max(ids) < vocabulary.size == 120
    assert vocabulary.encode(["", " ", "\u2603"]) == [[EOS], [EOS], [*_space(vocabulary), EOS]]


def _space(vocabulary: Vocabulary) -> list[int]:
    """What an unknown character becomes: the space before it, and UNKNOWN."""
    (ids,) = vocabulary.encode(["\u2603"])
    assert ids[-2] == UNKNOWN
    return ids[:-1]


def test_decoding_stops_at_eos_and_passes_over_padding(vocabulary: Vocabulary) -> None:
    (ids,) = vocabulary.encode(["Two young"])
    padded = np.array([PAD, *ids, *ids, PAD], np.int32)
    assert vocabulary.decode([padded, [], [EOS, 5]]) == ["Two young", "", ""]


def test_training_again_gives_the_same_vocabulary(vocabulary: Vocabulary, tmp_path: Path) -> None:
    models = [
        train_vocabulary(SENTENCES, size=100, kind=kind, path=tmp_path / "v.model").fingerprint
        for kind in ("bpe", "bpe", "unigram", "unigram")
    ]
    assert models[0] == models[1] != models[2] == models[3]
    assert Vocabulary.load(tmp_path / "v.model").fingerprint == models[3]
    assert [path.name for path in tmp_path.iterdir()] == ["v.model"]


def test_tokenised_captions_come_back_as_they_were(multi30k: Path, tmp_path: Path) -> None:
    folder = multi30k.with_name("multi30k_tok")
    if not folder.is_dir():
        pytest.skip("Multi30k is not at ../shared/data/multi30k_tok")
    lines = [
        line
        for language in ("de", "en")
        for line in (folder / f"val.{language}").read_text(encoding="utf-8").splitlines()
    ]
    vocabulary = train_vocabulary(lines, size=2000, kind="bpe", path=tmp_path / "v.model")
    assert vocabulary.decode(vocabulary.encode(lines)) == [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_size_that_the_corpus_cannot_fill(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "v.model"
    with pytest.raises(UserError, match=r"config\.data\.vocab_size=5000 .* at most (\d+)") as error:
        train_vocabulary(SENTENCES, size=5000, kind=kind, path=path)
    largest = int(str(error.value).partition("at most ")[2].split()[0])
    assert train_vocabulary(SENTENCES, size=largest, kind=kind, path=path).size == largest


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_size_that_cannot_hold_the_characters(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "v.model"
    with pytest.raises(UserError, match=r"config\.data\.vocab_size=30 .* (\d+) or more") as error:
        train_vocabulary(SENTENCES, size=30, kind=kind, path=path)
    assert list(tmp_path.iterdir()) == []
    smallest = int(str(error.value).split()[-3])
    assert train_vocabulary(SENTENCES, size=smallest, kind=kind, path=path).size == smallest


@pytest.mark.parametrize("sentences", [[], ["", "   "], ["\u200b", "\u00a0\u00ad"]])
def test_a_corpus_without_text(sentences: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable sentence: every line is blank"):
        train_vocabulary(sentences, size=30, kind="bpe", path=tmp_path / "v.model")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_line_and_no_character_is_left_out_of_learning(kind: str, tmp_path: Path) -> None:
    """All of these lines, or characters in them, sentencepiece would silently pass over."""
    odd = ["\u2585 Ω7", "one\0Ж", "tab\tĐ", "<unk>{ </s>} <pad>@", "☃" * 99_999 + "~", "\u2581Ŧ"]
    vocabulary = train_vocabulary(
        [*SENTENCES, *odd, *odd], size=140, kind=kind, path=tmp_path / "v.model"
    )
    known = ["Ω7", "Ж", "Đ", "< u n k > { } / @", "☃~", "Ŧ"]
    assert vocabulary.decode(vocabulary.encode(known)) == known
    # In encoding they are unknown at most, and hide nothing that follows.
    assert vocabulary.decode(vocabulary.encode(["Two\0young \u2585Ω", "<unk> </s>Ж"])) == [
        "Twoyoung \u2584Ω",
        "<unk> </s>Ж",
    ]


def test_every_line_may_have_a_character_that_sentencepiece_keeps_for_itself(
    tmp_path: Path,
) -> None:
    lines = [f"{sentence} \u2585 \0" for sentence in SENTENCES]
    for rules in ("same_look", "identity"):
        path = tmp_path / "v.model"
        vocabulary = train_vocabulary(lines, size=120, kind="bpe", path=path, normalization=rules)
        assert vocabulary.decode(vocabulary.encode(SENTENCES)) == SENTENCES


def test_no_more_sentences_are_held_than_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large corpus the same part each time: 400 characters, one a sentence."""
    monkeypatch.setattr("transformer_jax.data.vocabulary._MOST_SENTENCES", 101)
    rare = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]
    lines = [f"Kinder {character} spielen" for character in rare]
    made = [
        train_vocabulary(lines, size=125, kind="bpe", path=tmp_path / "v.model") for _ in range(2)
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert sum(UNKNOWN not in ids for ids in made[0].encode(rare)) == 101


def test_rare_characters_are_bytes_where_the_pieces_need_not_cover_them(tmp_path: Path) -> None:
    rare = [chr(code) for code in range(0x4E00, 0x4E80)]
    lines = [*SENTENCES * 20, *rare]
    path = tmp_path / "v.model"
    with pytest.raises(UserError, match=r"vocab_size=190 .* \d+ or more"):
        train_vocabulary(lines, size=190, kind="bpe", path=path)
    some = train_vocabulary(lines, size=190, kind="bpe", path=path, coverage=0.99)
    assert UNKNOWN in some.encode([rare[-1]])[0]
    assert not any(UNKNOWN in ids for ids in some.encode(["blauen himmel"]))
    all_of_them = train_vocabulary(
        lines, size=400, kind="bpe", path=path, coverage=0.99, byte_fallback=True
    )
    text = ["".join(rare), "Two 😀 weiße"]
    assert not any(UNKNOWN in ids for ids in all_of_them.encode(text))
    assert all_of_them.decode(all_of_them.encode(text)) == text
    with pytest.raises(UserError, match=r"vocab_size=250 cannot be trained: .*"):
        train_vocabulary(lines, size=250, kind="bpe", path=path, byte_fallback=True)


def test_an_error_in_the_corpus_is_not_taken_for_one_of_the_vocabulary(tmp_path: Path) -> None:
    def sentences() -> Iterator[str]:
        yield "first"
        raise UserError("train.en.gz is damaged")

    with pytest.raises(UserError, match=r"^train\.en\.gz is damaged$"):
        train_vocabulary(sentences(), size=30, kind="bpe", path=tmp_path / "v.model")


def test_a_vocabulary_that_cannot_be_used(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nosuch\.model cannot be read: No such file"):
        Vocabulary.load(tmp_path / "nosuch.model")
    damaged = tmp_path / "damaged.model"
    damaged.write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"damaged\.model is no sentencepiece model"):
        Vocabulary.load(damaged)
    other = io.BytesIO()  # sentencepiece's own ids
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=other, vocab_size=100, minloglevel=2
    )
    foreign = tmp_path / "foreign.model"
    foreign.write_bytes(other.getvalue())
    with pytest.raises(UserError, match=r"foreign\.model has pad, eos, unk = .*--pad_id=0"):
        Vocabulary.load(foreign)


def test_a_vocabulary_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "v.model"
    train_vocabulary(SENTENCES, size=100, kind="bpe", path=path)
    assert Vocabulary.load(path, size=100).size == 100
    with pytest.raises(UserError, match=r"100 pieces and config\.data\.vocab_size=90"):
        Vocabulary.load(path, size=90)
