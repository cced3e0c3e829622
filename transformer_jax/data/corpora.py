# SPDX-License-Identifier: Apache-2.0
"""Where sentence pairs come from: the built-in phrasebook, text files, or a TFDS data set."""

import dataclasses
import gzip
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from transformer_jax.config import DataConfig
from transformer_jax.errors import UserError

Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sentence pairs, (source, target), that can be gone through any number of times."""

    name: str  # changes when the pairs do
    pairs: Callable[[], Iterator[Pair]]
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Pair]:
        return self.pairs()


def load(data: DataConfig, split: str) -> Corpus | None:
    """The pairs of "train", "validation" or "test"; None for a split whose name is empty.

    Nothing is held in memory but what the phrasebook makes: files and data sets are streamed.

    Raises:
      UserError: the source is unknown, or a file is missing, unequal, empty or not UTF-8.
    """
    name = data.splits.get(split, "")
    if not name:
        if split == "train":
            raise UserError("config.data.splits.train is empty; it must name the training split")
        return None
    if data.source == "phrasebook":
        return _phrasebook(data, split)
    if data.source == "text":
        return _text(data, name)
    return _tfds(data, name)


def _phrasebook(data: DataConfig, split: str) -> Corpus:
    from transformer_jax.data import phrasebook  # made when it is asked for

    languages = (data.source_lang, data.target_lang)
    if set(languages) != {"en", "de"}:
        raise UserError(
            f"config.data.source=phrasebook has en and de, not {languages[0]} and {languages[1]}"
        )
    swap = languages == ("de", "en")

    def pairs() -> Iterator[Pair]:
        for english, german in phrasebook.pairs(split):
            yield (german, english) if swap else (english, german)

    return Corpus(f"phrasebook {split}", pairs, len(phrasebook.pairs(split)))


def _text(data: DataConfig, name: str) -> Corpus:
    paths = [_find(data.path, name, language) for language in (data.source_lang, data.target_lang)]
    counts = [sum(1 for _ in _lines(path)) for path in paths]
    if counts[0] != counts[1]:
        raise UserError(
            f"{paths[0]} has {counts[0]} lines and {paths[1]} has {counts[1]}; "
            "line i of one must translate line i of the other"
        )
    if not counts[0]:
        raise UserError(f"{paths[0]} is empty; give a file with one sentence a line")
    stamps = [
        f"{path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths
    ]
    return Corpus("\n".join(stamps), lambda: zip(*map(_lines, paths), strict=True), counts[0])


def _find(template: str, split: str, language: str) -> Path:
    """The file that a path template means, or the same name with .gz."""
    if "{lang}" not in template:
        raise UserError(
            f"config.data.path={template!r} has no {{lang}}; write it where the files' names have "
            "the language, such as data/{split}.{lang}"
        )
    try:
        path = Path(template.format(split=split, lang=language))
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"config.data.path={template!r} may have {{split}} and {{lang}} in braces, nothing else"
        ) from None
    compressed = path.with_name(path.name + ".gz")
    for candidate in (path, compressed):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{path} does not exist, nor does {compressed.name}; config.data.path is {template!r}, and "
        "config.data.splits says which name each split has in it"
    )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, ended by line feeds alone: a form feed or U+2028 is text."""
    opener: Callable[..., BinaryIO] = gzip.open if path.suffix == ".gz" else open  # type: ignore
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} line {number} is not UTF-8 (byte {error.start + 1}); convert the "
                        "file, such as with iconv -f latin1 -t utf-8"
                    ) from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _tfds(data: DataConfig, split: str) -> Corpus:
    """A TFDS translation data set, prepared as array_record, which needs no TensorFlow."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.translate  # registers the builders

    try:
        builder = tfds.builder(data.source, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"config.data.source={data.source!r} is neither phrasebook, text nor a TFDS name such "
            f"as wmt14_translate/de-en: {reason}"
        ) from None
    languages = {data.source_lang, data.target_lang}
    if not languages <= set(builder.info.features):
        raise UserError(
            f"config.data.source={data.source!r} has {', '.join(builder.info.features)}, not "
            f"{data.source_lang} and {data.target_lang}"
        )
    builder.download_and_prepare()
    if split not in builder.info.splits:
        raise UserError(
            f"config.data.splits names {split!r}; {data.source} has "
            f"{', '.join(builder.info.splits)}"
        )
    records = builder.as_data_source(split)

    def pairs() -> Iterator[Pair]:
        for index in range(len(records)):
            record = records[index]
            yield record[data.source_lang].decode(), record[data.target_lang].decode()

    return Corpus(f"{builder.info.full_name} {split}", pairs, len(records))


def sentences(corpus: Corpus) -> Iterator[str]:
    """Both sides of every pair."""
    return itertools.chain.from_iterable(corpus)
