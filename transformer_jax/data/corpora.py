# SPDX-License-Identifier: Apache-2.0
"""Where sentence pairs come from: the built-in phrasebook, text files, or a TFDS data set."""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer_jax.config import DataConfig
from transformer_jax.errors import UserError
from transformer_jax.text_files import TextFile

Pair = tuple[str, str]

_SPLITS = ("train", "validation", "test")
_AT_ONCE = 256  # lines that are hashed together


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sentence pairs, (source, target), that can be gone through any number of times."""

    name: str  # changes when the pairs do, and when files are moved or touched
    pairs: Callable[[], Iterator[Pair]]
    count: Callable[[], int]
    # Changes when the pairs do and never else; to compute it may take a pass through them. None: so
    # does the name.
    digest: Callable[[], str] | None = None

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[Pair]:
        return self.pairs()

    def record(self) -> dict[str, str]:
        """What is written down of the pairs that something was made from."""
        return {"corpus": self.name, "content": self._content()}

    def made(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of these pairs; they are read only if the name is another one."""
        name = record.get("corpus")
        if name == self.name:
            return True
        if "content" in record:
            return record["content"] == self._content()
        return _same_files(str(name), self.name)  # the record of an earlier version

    def _content(self) -> str:
        return self.digest() if self.digest else self.name


def _same_files(name: str, other: str) -> bool:
    """Whether two names of text are of files with the same sizes and times, wherever they lie."""
    files, others = (re.findall(r" (\d+ \d+)$", text, re.M) for text in (name, other))
    return len(files) == 2 and files == others


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
        return _phrasebook(data, name)
    if data.source == "text":
        return _text(data, name)
    return _tfds(data, name)


def _phrasebook(data: DataConfig, name: str) -> Corpus:
    from transformer_jax.data import phrasebook  # made when it is asked for

    languages = (data.source_lang, data.target_lang)
    if set(languages) != {"en", "de"}:
        raise UserError(
            f"config.data.source=phrasebook has en and de, not {languages[0]} and {languages[1]}"
        )
    if name not in _SPLITS:
        raise UserError(
            f"config.data.splits names {name!r}; the phrasebook has {', '.join(_SPLITS)}"
        )
    english_german = phrasebook.pairs(name)
    swap = languages == ("de", "en")

    def pairs() -> Iterator[Pair]:
        return (
            (german, english) if swap else (english, german) for english, german in english_german
        )

    digest = hashlib.sha256("\n".join(itertools.chain.from_iterable(english_german)).encode())
    identity = f"phrasebook {name} {' '.join(languages)} {digest.hexdigest()}"
    return Corpus(identity, pairs, english_german.__len__)


def _text(data: DataConfig, name: str) -> Corpus:
    languages = (data.source_lang, data.target_lang)
    source, target = (_find(data, name, language) for language in languages)

    @functools.cache
    def scan() -> tuple[int, str]:
        """The number of lines and what they are; tells what is wrong with the files."""
        (count, content), (targets, target_content) = map(_scan, (source, target))
        if count != targets:
            raise UserError(
                f"{source} has {count} lines and {target} has {targets}; "
                "line i of one must translate line i of the other"
            )
        if not count:
            raise UserError(f"{source} is empty; give a file with one sentence a line")
        return count, f"{content} {target_content}"

    def pairs() -> Iterator[Pair]:
        scan()  # whatever is wrong with the files is told before the first pair
        yield from zip(_lines(source), _lines(target), strict=True)

    stats = [(path.absolute(), path.stat()) for path in (source, target)]
    name_of_files = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    return Corpus(name_of_files, pairs, lambda: scan()[0], lambda: scan()[1])


def _scan(path: Path) -> tuple[int, str]:
    """The number of lines of a file, and the SHA-256 of them, however they are packed."""
    count, digest, lines = 0, hashlib.sha256(), _lines(path)
    while some := list(itertools.islice(lines, _AT_ONCE)):
        count += len(some)
        digest.update("".join(f"{line}\n" for line in some).encode())
    return count, digest.hexdigest()


def _find(data: DataConfig, split: str, language: str) -> Path:
    """The file that config.data.path means, or the same name with .gz."""
    template = data.path
    if "{lang}" not in template:
        raise UserError(
            f"config.data.path={template!r} has no {{lang}}; write it where the files' names have "
            "the language, such as data/{split}.{lang}"
        )
    if "{split}" not in template and sum(map(bool, data.splits.values())) > 1:
        raise UserError(
            f"config.data.path={template!r} has no {{split}}, so that training and test would be "
            "one; write it into the path, or set config.data.splits.validation and test to ''"
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
    with TextFile(path) as file:
        yield from file


def _tfds(data: DataConfig, name: str) -> Corpus:
    from transformer_jax.data.tfds_source import TfdsSplit  # TFDS takes a second to import

    split = TfdsSplit(data.source, name, (data.source_lang, data.target_lang))
    return Corpus(split.name, split.__iter__, split.__len__)


def sentences(corpus: Corpus) -> Iterator[str]:
    """Both sides of every pair."""
    return itertools.chain.from_iterable(corpus)
