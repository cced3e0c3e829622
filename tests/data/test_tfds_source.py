# SPDX-License-Identifier: Apache-2.0
"""TFDS's own WMT builders, on tiny archives, without TensorFlow."""

import gzip
import io
import sys
import tarfile
from pathlib import Path

import pytest
import requests

from transformer_jax.config import default_config, resolve
from transformer_jax.data import pipeline
from transformer_jax.data.tfds_source import TfdsSplit
from transformer_jax.errors import UserError

PAIRS = 40  # of each archive


def parallel(stem: str, languages: tuple[str, str], name: str) -> dict[str, bytes]:
    """Two text files: sentence i of one translates sentence i of the other."""
    words = {"en": "This is sentence", "de": "Dies ist der Sätz", "fr": "Voilà la phrase"}
    return {
        f"{stem}.{language}": "".join(
            f"{words[language]} {name} {number}.\n" for number in range(PAIRS)
        ).encode()
        for language in languages
    }


def sgm(*sentences: str) -> bytes:
    """The format of WMT's test sets."""
    segments = (
        f'<seg id="{number}">{text}</seg>' for number, text in enumerate(sentences, start=1)
    )
    return "\n".join(["<refset>", *segments, "</refset>"]).encode()


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """A tar file, compressed if its name says so."""
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_archives(folder: Path) -> None:
    """Every archive that the WMT 2014 builders ask for, with 40 pairs or two."""
    german, french = ("de", "en"), ("fr", "en")
    crawl, europarl, news = "commoncrawl", "training/europarl-v7", "training/news-commentary-v9"
    archives = {
        "training-parallel-commoncrawl.tgz": crawl,
        "training-parallel-europarl-v7.tgz": europarl,
        "training-parallel-nc-v9.tgz": news,
    }
    for archive, stem in archives.items():
        files = {}
        for pair in (german, french):
            files |= parallel(f"{stem}.{pair[0]}-en", pair, Path(stem).name)
        write_archive(folder / archive, files)
    write_archive(
        folder / "training-parallel-un.tgz", parallel("un/undoc.2000.fr-en", french, "undoc")
    )
    giga = parallel("giga-fren.release2.fixed", french, "giga")
    write_archive(
        folder / "training-giga-fren.tar",
        {f"{name}.gz": gzip.compress(content) for name, content in giga.items()},
    )
    write_archive(
        folder / "dev.tgz",
        {
            **parallel("dev/newstest2013", ("de", "en"), "newstest2013"),
            **parallel("dev/newstest2013", ("fr", "en"), "newstest2013"),
            "dev/newstest2014-deen-src.de.sgm": sgm("Guten Tag .", "Schöne Grüße ."),
            "dev/newstest2014-deen-ref.en.sgm": sgm("Good day .", "Kind regards ."),
            "dev/newstest2014-fren-src.fr.sgm": sgm("Bonjour ."),
            "dev/newstest2014-fren-ref.en.sgm": sgm("Good day ."),
        },
    )


@pytest.fixture
def wmt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TFDS's folder; whatever TFDS would download is one of the tiny archives."""
    import tensorflow_datasets as tfds
    import tree
    from tensorflow_datasets.core import shuffle

    archives, folder = tmp_path / "archives", tmp_path / "tensorflow_datasets"
    archives.mkdir()
    write_archives(archives)

    def fetch(manager: tfds.download.DownloadManager, urls: object) -> object:
        return tree.map_structure(
            lambda url: manager.extract(archives / url.rpartition("/")[2]), urls
        )

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fetch)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
    # As with the real corpora, records are sorted through files rather than in memory.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    return folder


def test_german(wmt: Path) -> None:
    train = TfdsSplit("wmt14_translate/de-en", "train", ("en", "de"))
    pairs = list(train)
    assert len(train) == len(pairs) == 3 * PAIRS
    assert ("This is sentence commoncrawl 7.", "Dies ist der Sätz commoncrawl 7.") in pairs
    assert len(set(pairs)) == 3 * PAIRS
    assert all(english.split()[3:] == german.split()[4:] for english, german in pairs), (
        "the sides of a pair are of different sentences"
    )
    test = TfdsSplit("wmt14_translate/de-en", "test", ("de", "en"))
    assert sorted(test) == [("Guten Tag .", "Good day ."), ("Schöne Grüße .", "Kind regards .")]
    assert "tensorflow" not in sys.modules
    assert any(wmt.rglob("*.array_record*")), "not prepared as array_record"


def test_french(wmt: Path) -> None:
    train = TfdsSplit("wmt14_translate/fr-en", "train", ("en", "fr"))
    assert len(set(train)) == 5 * PAIRS  # the UN's and the giga corpus too
    assert ("This is sentence giga 0.", "Voilà la phrase giga 0.") in set(train)
    assert list(TfdsSplit("wmt14_translate/fr-en", "test", ("en", "fr"))) == [
        ("Good day .", "Bonjour .")
    ]


@pytest.mark.usefixtures("wmt")
def test_from_the_data_set_to_batches(tmp_path: Path) -> None:
    config = default_config()
    config.data.source = "wmt14_translate/de-en"
    config.data.vocab_size = 60
    config.data.max_length = 64
    config.data.batch_tokens = 1024
    config = resolve(config)
    dataset = pipeline.prepare(config, tmp_path / "run")
    assert len(dataset.train) == 3 * PAIRS
    assert sorted(dataset.text("test")[1]) == ["Guten Tag .", "Schöne Grüße ."]
    assert len(dataset.text("validation")[0]) == PAIRS
    batch = next(pipeline.training_batches(dataset, config, start_step=0))
    assert batch.source.ids.shape == (16, 64)
    again = pipeline.prepare(config, tmp_path / "run")
    assert again.train.report == dataset.train.report


@pytest.mark.usefixtures("wmt")
def test_a_split_or_language_that_the_data_set_lacks() -> None:
    with pytest.raises(
        UserError, match=r"'dev'; wmt14_translate/de-en has train, validation, test"
    ):
        TfdsSplit("wmt14_translate/de-en", "dev", ("en", "de"))
    with pytest.raises(
        UserError, match=r"has de, en, but config\.data\.source_lang is en and .* fr"
    ):
        TfdsSplit("wmt14_translate/de-en", "train", ("en", "fr"))


@pytest.mark.parametrize(
    "name",
    [
        "nosuch",
        "wmt14_translat/de-en",
        "wmt14_translate/xx-en",
        "wmt14_translate/de-en:9.9.9",
        "wmt14_translate/de-en/more",
        "Not a name!",
        "huggingface:some/thing",
    ],
)
def test_a_name_that_tfds_does_not_know_is_told_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        TfdsSplit(name, "train", ("en", "de"))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300, message
    for expected in (
        "config.data.source",
        repr(name),
        "phrasebook",
        "text",
        "wmt14_translate/de-en",
    ):
        assert expected in message


@pytest.mark.usefixtures("wmt")
def test_a_failed_download_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def fail(*_: object) -> None:
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    with pytest.raises(
        UserError, match=r"'wmt14_translate/de-en' cannot be downloaded.*no route to"
    ):
        TfdsSplit("wmt14_translate/de-en", "train", ("en", "de"))
