# SPDX-License-Identifier: Apache-2.0
"""Text files are read strictly, streamed, and refused in one line that names the culprit."""

import dataclasses
import gzip
import hashlib
import sys
import tracemalloc
import types
from pathlib import Path

import pytest

from transformer_jax.config import DataConfig
from transformer_jax.data import corpora
from transformer_jax.errors import UserError


def text_config(folder: Path, **changes: object) -> DataConfig:
    """Parallel text in a folder, as train.en, train.de, ..."""
    data = DataConfig(source="text", path=str(folder / "{split}.{lang}"))
    return dataclasses.replace(data, **changes)


def write(folder: Path, english: bytes, german: bytes, split: str = "train") -> None:
    """The two files of a split."""
    (folder / f"{split}.en").write_bytes(english)
    (folder / f"{split}.de").write_bytes(german)


def test_text_is_read_in_either_direction_any_number_of_times(tmp_path: Path) -> None:
    write(tmp_path, b"a house\na dog\n", "ein Haus\nein Hünd\n".encode())
    corpus = corpora.load(text_config(tmp_path), "train")
    assert corpus is not None
    assert len(corpus) == 2
    assert list(corpus) == list(corpus) == [("a house", "ein Haus"), ("a dog", "ein Hünd")]
    turned = corpora.load(text_config(tmp_path, source_lang="de", target_lang="en"), "train")
    assert list(turned) == [(german, english) for english, german in corpus]
    assert turned.name != corpus.name, "a corpus tokenised the other way round would be reused"


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    english = "\ufeffone\u2028still one\r\ntwo\x0cstill two\x85\x1c\nthree\rstill three"
    write(tmp_path, english.encode(), b"eins\nzwei\ndrei")
    corpus = corpora.load(text_config(tmp_path), "train")
    assert [source for source, _ in corpus] == [
        "one\u2028still one",
        "two\x0cstill two\x85\x1c",
        "three\rstill three",
    ]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_compressed_files_are_found_with_and_without_their_suffix(
    tmp_path: Path, suffix: str
) -> None:
    for language in ("en", "de"):
        (tmp_path / f"train.{language}.gz").write_bytes(gzip.compress(f"{language}\n".encode()))
    data = text_config(tmp_path, path=str(tmp_path / "{split}.{lang}") + suffix)
    assert list(corpora.load(data, "train")) == [("en", "de")]


def test_a_split_is_found_under_the_name_that_the_config_gives_it(tmp_path: Path) -> None:
    write(tmp_path, b"x\n", b"y\n", split="newstest2013")
    splits = {"train": "train", "validation": "newstest2013", "test": ""}
    data = text_config(tmp_path, splits=splits)
    assert list(corpora.load(data, "validation")) == [("x", "y")]
    assert corpora.load(data, "test") is None
    with pytest.raises(UserError, match=r"config\.data\.splits\.train is empty"):
        corpora.load(dataclasses.replace(data, splits=splits | {"train": ""}), "train")


def test_a_changed_file_gives_the_corpus_another_name(tmp_path: Path) -> None:
    write(tmp_path, b"x\n", b"y\n")
    before = corpora.load(text_config(tmp_path), "train").name
    assert corpora.load(text_config(tmp_path), "train").name == before
    write(tmp_path, b"x\n", b"other\n")
    assert corpora.load(text_config(tmp_path), "train").name != before


def test_a_corpus_is_known_by_its_lines_however_they_are_packed(tmp_path: Path) -> None:
    english, german = b"a house\na dog\n", "ein Haus\nein Hünd\n".encode()
    write(tmp_path, english, german)
    record = corpora.load(text_config(tmp_path), "train").record()
    assert record["content"].split() == [hashlib.sha256(s).hexdigest() for s in (english, german)]
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.en.gz").write_bytes(gzip.compress(english))
    (other / "train.de").write_bytes(b"\xef\xbb\xbf" + german.replace(b"\n", b"\r\n")[:-2])
    assert corpora.load(text_config(other), "train").made(record)
    turned = text_config(tmp_path, source_lang="de", target_lang="en")
    assert not corpora.load(turned, "train").made(record)
    write(tmp_path, english, german.replace(b"ein", b"Ein"))
    assert not corpora.load(text_config(tmp_path), "train").made(record)


def test_a_corpus_whose_files_are_the_recorded_ones_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, b"a\n", b"b\n")
    record = corpora.load(text_config(tmp_path), "train").record()
    monkeypatch.setattr(corpora, "_lines", None)
    assert corpora.load(text_config(tmp_path), "train").made(record)


ONE_SPLIT = {"train": "train", "validation": "", "test": ""}


@pytest.mark.parametrize(
    ("english", "german", "changes", "culprits"),
    [
        (b"a\nb\n", b"a\n", {}, ["train.en has 2 lines", "train.de has 1"]),
        (b"a\n\xe9t\xe9\n", b"a\nb\n", {}, ["train.en, line 2", "UTF-8", "iconv"]),
        (b"", b"", {}, ["train.en is empty"]),
        (b"a\n", b"a\n", {"source_lang": "fr"}, ["train.fr does not exist", "train.fr.gz"]),
        (b"a\n", b"a\n", {"path": "x/{split}.en"}, ["config.data.path", "{lang}"]),
        (b"a\n", b"a\n", {"path": "x/train.{lang}"}, ["config.data.path", "{split}"]),
        (b"a\n", b"a\n", {"path": "{split}.{lang}.{year}"}, ["config.data.path", "{lang}"]),
        (b"a\n", b"a\n", {"path": "{split}.{lang}.{"}, ["config.data.path", "{lang}"]),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    tmp_path: Path, english: bytes, german: bytes, changes: dict, culprits: list[str]
) -> None:
    write(tmp_path, english, german)
    with pytest.raises(UserError) as error:
        list(corpora.load(text_config(tmp_path, **changes), "train"))
    message = str(error.value)
    assert "\n" not in message
    assert all(culprit in message for culprit in culprits), message


def test_one_file_for_all_splits_is_fine_if_there_is_one_split(tmp_path: Path) -> None:
    write(tmp_path, b"a\n", b"b\n")
    data = text_config(tmp_path, path=str(tmp_path / "train.{lang}"), splits=ONE_SPLIT)
    assert list(corpora.load(data, "train")) == [("a", "b")]


def test_a_truncated_archive_is_told_in_one_line(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"sentence {i}\n" for i in range(10_000)).encode())
    for damaged in (whole[:-100], whole[:100] + bytes(100) + whole[200:]):
        (tmp_path / "train.en.gz").write_bytes(damaged)
        (tmp_path / "train.de.gz").write_bytes(whole)
        with pytest.raises(UserError, match=r"train\.en\.gz cannot be read") as error:
            len(corpora.load(text_config(tmp_path), "train"))
        assert "\n" not in str(error.value)


def test_text_is_streamed(tmp_path: Path) -> None:
    line = b"x" * 1000 + b"\n"
    write(tmp_path, line * 20_000, line * 20_000)
    tracemalloc.start()
    corpus = corpora.load(text_config(tmp_path), "train")
    assert sum(1 for _ in corpus) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, f"reading 40 MB held {peak / 1e6:.1f} MB"


@pytest.fixture
def fake_phrasebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phrasebook of two pairs, in English and German."""
    module = types.ModuleType("phrasebook")
    module.pairs = lambda split: [(f"one {split}", f"eins {split}"), ("two", "zwei")]
    monkeypatch.setitem(sys.modules, "transformer_jax.data.phrasebook", module)
    monkeypatch.setattr("transformer_jax.data.phrasebook", module, raising=False)


@pytest.mark.usefixtures("fake_phrasebook")
def test_the_phrasebook_in_both_directions() -> None:
    data = DataConfig(source="phrasebook")
    english = corpora.load(data, "test")
    german = corpora.load(dataclasses.replace(data, source_lang="de", target_lang="en"), "test")
    assert list(english) == list(english) == [("one test", "eins test"), ("two", "zwei")]
    assert list(german) == [("eins test", "one test"), ("zwei", "two")]
    assert english.name != german.name
    assert english.name != corpora.load(data, "train").name
    assert len(english) == 2


@pytest.mark.usefixtures("fake_phrasebook")
def test_the_phrasebook_says_what_it_does_not_have() -> None:
    with pytest.raises(UserError, match="en and de, not en and fr"):
        corpora.load(DataConfig(source="phrasebook", target_lang="fr"), "train")
    splits = {"train": "val", "validation": "", "test": ""}
    with pytest.raises(UserError, match="'val'"):
        corpora.load(DataConfig(source="phrasebook", splits=splits), "train")
