# SPDX-License-Identifier: Apache-2.0
"""Tokenised once, whole or not at all, with what is left out counted."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data.batch import EOS
from transformer_jax.data.corpora import Corpus
from transformer_jax.data.tokenized import TokenizedCorpus, made_from, tokenize
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.errors import UserError

PAIRS = [(f"sentence number {n}", f"Satz Nummer {n} , " + "sehr " * (n % 7)) for n in range(500)]


def corpus_of(pairs: Sequence[tuple[str, str]], name: str = "test corpus") -> Corpus:
    """These pairs as a corpus."""
    return Corpus(name, lambda: iter(pairs), lambda: len(pairs))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Sixty pieces of the pairs above."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    sentences = [side for pair in PAIRS for side in pair]
    return train_vocabulary(sentences, size=60, kind="bpe", path=path)


class WordNumbers:
    """A vocabulary whose sentences are their own ids: "70000 5" is [70000, 5, EOS]."""

    def __init__(self, size: int):
        self.size, self.fingerprint = size, f"numbers below {size}"

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The numbers in each sentence."""
        return [[*map(int, sentence.split()), EOS] for sentence in sentences]

    encode_targets = encode


def test_what_is_read_is_what_was_written_in_any_order(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tokenized = tokenize(corpus_of(PAIRS), vocabulary, max_length=100, folder=tmp_path / "train")
    assert len(tokenized) == 500
    indices = np.random.default_rng(0).permutation(500).tolist()
    for index, (source, target) in zip(indices, tokenized.read(indices), strict=True):
        assert [source.tolist(), target.tolist()] == vocabulary.encode(PAIRS[index])
        assert tokenized.lengths[index].tolist() == [len(source), len(target)]
    assert tokenized.read([]) == []
    assert isinstance(tokenized.lengths, np.memmap), "36 million lengths are not to be in memory"


@pytest.mark.parametrize(("size", "ids_type"), [(60_000, "uint16"), (70_000, "uint32")])
def test_ids_take_as_few_bytes_as_the_vocabulary_allows(
    size: int, ids_type: str, tmp_path: Path
) -> None:
    pair = (f"{size - 1} 7", f"3 {size - 1} {size - 2}")
    tokenized = tokenize(
        corpus_of([pair]), WordNumbers(size), max_length=10, folder=tmp_path / "train"
    )
    ((source, target),) = tokenized.read([0])
    assert source.tolist() == [size - 1, 7, EOS]
    assert target.tolist() == [3, size - 1, size - 2, EOS]
    assert source.dtype == target.dtype == tokenized.lengths.dtype == ids_type


def test_blank_and_over_long_pairs_are_counted_and_left_out(
    vocabulary: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [
        ("sentence", "Satz"),
        ("", "empty source"),
        ("empty target", " \t"),
        ("x" * 100_000, "a line of 100,000 characters"),
        ("long", "sehr " * 200),
        ("number", "sehr \u2603"),
        ("\u200b", "nothing that one sees"),
    ]
    caplog.set_level(logging.INFO, "transformer_jax")
    tokenized = tokenize(corpus_of(pairs), vocabulary, max_length=50, folder=tmp_path / "train")
    kept = [vocabulary.decode(ids) for ids in zip(*tokenized.read([0, 1]), strict=True)]
    assert kept == [["sentence", "number"], ["Satz", "sehr  \u2047 "]]
    assert tokenized.report["counts"] == {"pairs": 2, "empty": 3, "over-long": 2, "unknown": 1}
    assert caplog.messages == [
        "train: 2 sentence pairs; left out: 3 with an empty side, 2 of more than 50 tokens",
        "train: 1 of 4 lines have characters that the vocabulary does not know",
    ]
    tokenize(corpus_of(pairs[:1], "other"), vocabulary, max_length=50, folder=tmp_path / "train")
    assert "train: 0 of 2 lines" in caplog.messages[-1], "a user can see that there are none"


def test_memory_holds_no_more_of_a_corpus_than_two_lengths_a_pair(tmp_path: Path) -> None:
    class Line(str):
        """A sentence that is counted while it is in memory."""

        live = most = 0

        def __new__(cls, text: str) -> "Line":
            Line.live += 1
            Line.most = max(Line.most, Line.live)
            return super().__new__(cls, text)

        def __del__(self) -> None:
            Line.live -= 1

    count = 30_000
    pairs = ((Line("3 4 5"), Line("6 7")) for _ in range(count))
    corpus = Corpus("many pairs", lambda: pairs, lambda: count)
    tokenized = tokenize(corpus, WordNumbers(10), max_length=9, folder=tmp_path / "train")
    assert len(tokenized) == count
    assert Line.most <= 2 * 2 * 4096, "more pairs at once than are tokenised at once, and the next"
    header = 128  # of NumPy's files
    assert (tmp_path / "train" / "lengths.npy").stat().st_size == 4 * count + header


def test_the_limit_counts_the_end_mark(tmp_path: Path) -> None:
    pairs = [("3 4 5", "6"), ("3 4 5 6", "6"), ("6", "3 4 5 6")]
    tokenized = tokenize(corpus_of(pairs), WordNumbers(10), max_length=4, folder=tmp_path / "train")
    assert tokenized.lengths.tolist() == [[4, 2]]


def test_nothing_usable_is_an_error(vocabulary: Vocabulary, tmp_path: Path) -> None:
    pairs = [("", ""), ("a", ""), ("sehr " * 100, "b")]
    with pytest.raises(UserError, match=r"no usable pair \(2 .*, 1 over .*max_length=20") as error:
        tokenize(corpus_of(pairs), vocabulary, max_length=20, folder=tmp_path / "train")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "train").exists()


def test_the_same_corpus_is_tokenised_once(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    tokenize(corpus_of(PAIRS), vocabulary, max_length=100, folder=folder)

    def unread() -> Iterator[tuple[str, str]]:
        raise AssertionError("the corpus was read again")

    again = Corpus("test corpus", unread, lambda: 500)
    assert len(tokenize(again, vocabulary, max_length=100, folder=folder)) == 500
    assert len(TokenizedCorpus.load(folder)) == 500


def test_what_changes_the_ids_is_tokenised_anew(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    tokenize(corpus_of(PAIRS), vocabulary, max_length=100, folder=folder)
    assert len(tokenize(corpus_of(PAIRS), vocabulary, max_length=8, folder=folder)) < 500
    fewer = corpus_of(PAIRS[:10], name="other corpus")
    assert len(tokenize(fewer, vocabulary, max_length=100, folder=folder)) == 10
    sentences = [side for pair in PAIRS for side in pair]
    other = train_vocabulary(sentences, size=50, kind="bpe", path=tmp_path / "other.model")
    ((source, _),) = tokenize(fewer, other, max_length=100, folder=folder).read([3])
    assert other.decode([source]) == [PAIRS[3][0]]


def test_a_death_on_the_way_leaves_nothing_that_is_taken_for_whole(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    folder = tmp_path / "train"

    def dying() -> Iterator[tuple[str, str]]:
        yield from PAIRS * 20
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(Corpus("test corpus", dying, lambda: 1), vocabulary, max_length=99, folder=folder)
    assert not folder.exists()
    assert len(tokenize(corpus_of(PAIRS), vocabulary, max_length=99, folder=folder)) == 500
    # Dead again while another corpus takes the place of this one: the first one still stands.
    with pytest.raises(KeyboardInterrupt):
        tokenize(Corpus("another", dying, lambda: 1), vocabulary, max_length=99, folder=folder)
    assert len(TokenizedCorpus.load(folder)) == 500


def test_a_folder_that_was_half_deleted_is_written_again(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "train"
    tokenize(corpus_of(PAIRS), vocabulary, max_length=99, folder=folder)

    def dying(path: Path, **_: object) -> None:
        if path == folder:
            (path / "lengths.npy").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        tokenize(corpus_of(PAIRS[:9], "other"), vocabulary, max_length=99, folder=folder)
    monkeypatch.undo()
    assert len(tokenize(corpus_of(PAIRS), vocabulary, max_length=99, folder=folder)) == 500


@pytest.mark.parametrize("lost", ["report.json", "lengths.npy"])
def test_a_folder_that_is_not_whole_is_named(
    vocabulary: Vocabulary, tmp_path: Path, lost: str
) -> None:
    folder = tmp_path / "train"
    tokenize(corpus_of(PAIRS), vocabulary, max_length=99, folder=folder)
    (folder / lost).unlink()
    with pytest.raises(
        UserError, match=rf"train has no whole tokenised corpus .*{lost}.*delete it"
    ):
        TokenizedCorpus.load(folder)


def test_a_record_of_an_earlier_version_is_of_the_same_files_wherever_they_are(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    tokenize(
        corpus_of(PAIRS, "/old/x.en 10 1700\n/old/x.de 20 1800"),
        vocabulary,
        max_length=99,
        folder=folder,
    )
    report = json.loads((folder / "report.json").read_text())
    del report["made_from"]["content"]

    def unread() -> Iterator[tuple[str, str]]:
        raise AssertionError("the corpus was read again")

    for name, same in {
        "/old/x.en 10 1700\n/old/x.de 20 1800": True,
        "/new/y.en 10 1700\n/new/y.de 20 1800": True,
        "/old/x.en 10 1700\n/old/x.de 20 1801": False,
        "/old/x.en 20 1800\n/old/x.de 10 1700": False,
        "wmt14_translate/de-en:1.0.0 train en de": False,
    }.items():
        (folder / "report.json").write_text(json.dumps(report))
        corpus = Corpus(name, unread, lambda: 500, lambda: "hashed")
        if same:
            assert len(tokenize(corpus, vocabulary, max_length=99, folder=folder)) == 500
            assert made_from(folder)["corpus"] == name
        else:
            with pytest.raises(AssertionError, match="read again"):
                tokenize(corpus, vocabulary, max_length=99, folder=folder)


def test_a_damaged_report_is_no_report(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    for damage in ("", "{", "[]", '{"made_from": 3}'):
        folder.mkdir(exist_ok=True)
        (folder / "report.json").write_text(damage)
        assert len(tokenize(corpus_of(PAIRS), vocabulary, max_length=99, folder=folder)) == 500
