# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a run folder: learned or copied once, with a record of what from.

<workdir>/vocabulary.model       the vocabulary
<workdir>/data/vocabulary.json   its SHA-256, and what it was made from
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_jax.config import DataConfig
from transformer_jax.data.corpora import Corpus, sentences
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.errors import UserError
from transformer_jax.files import write_whole
from transformer_jax.progress import Bar

log = logging.getLogger(__name__)


def prepare_vocabulary(data: DataConfig, train: Corpus, workdir: Path, *, keep: bool) -> Vocabulary:
    """The folder's vocabulary, made if there is none.

    It is also made anew where its record says that this config or text would make another one, unless
    `keep`: weights were learned with it. A vocabulary without a record is taken as it is. A process
    that dies leaves none that is taken for another.

    Raises:
      UserError: it cannot be made, or has another size than the config.
    """
    path = model_path(workdir)
    if path.exists():
        if keep or _is_current(data, train, workdir):
            return Vocabulary.load(path, size=data.vocab_size)
        log.warning("%s was made from other data or settings; it is made anew", path)
    made = workdir / "data" / "vocabulary.new"
    if data.vocab_path:
        Vocabulary.load(data.vocab_path, size=data.vocab_size)  # refused before anything is written
        write_whole(made, Path(data.vocab_path).read_bytes())
    else:
        _learn(data, train, made)
    record = {"vocabulary": file_digest(made)} | _origin(data)
    if not data.vocab_path:
        record |= train.record()
    # The record first: until the vocabulary is in its place, it is that of no file.
    _write_record(workdir, record)
    made.replace(path)
    return Vocabulary.load(path)


def model_path(workdir: Path) -> Path:
    """Where a run folder has its vocabulary."""
    return workdir / "vocabulary.model"


def read_record(workdir: Path) -> dict[str, Any] | None:
    """What the folder's vocabulary was made from; None where that was not written down."""
    try:
        return dict(json.loads(_record_path(workdir).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"vocabulary {path} cannot be read: {error.strerror}") from None


def _learn(data: DataConfig, train: Corpus, path: Path) -> None:
    log.info("learning a vocabulary of %d pieces", data.vocab_size)
    start = time.monotonic()
    with Bar(2 * len(train), "lines", "reading") as bar:

        def read() -> Iterator[str]:
            for sentence in sentences(train):
                yield sentence
                bar.update()

        train_vocabulary(
            read(),
            size=data.vocab_size,
            kind=data.vocab_type,
            path=path,
            normalization=data.normalization,
            coverage=data.character_coverage,
            byte_fallback=data.byte_fallback,
        )
    log.info("learned it in %.0f s", time.monotonic() - start)


def _is_current(data: DataConfig, train: Corpus, workdir: Path) -> bool:
    """Whether the folder's vocabulary is what this config and text would make."""
    record = read_record(workdir)
    if record is None:  # of an earlier version, or put there by hand
        return True
    if record.get("vocabulary") != file_digest(model_path(workdir)):
        return False
    if data.vocab_path and not Path(data.vocab_path).exists():
        return "given" in record  # it was copied
    if not _origin(data).items() <= record.items():
        return False
    if data.vocab_path:
        return True
    current = train.made(record)
    if current and record["corpus"] != train.name:  # it moved; the next start need not read it
        _write_record(workdir, record | {"corpus": train.name})
    return current


def _origin(data: DataConfig) -> dict[str, Any]:
    """What a vocabulary is made from, besides the training text if it is learned."""
    if data.vocab_path:
        return {"given": file_digest(Path(data.vocab_path))}
    return {
        "size": data.vocab_size,
        "type": data.vocab_type,
        "normalization": data.normalization,
        "character_coverage": data.character_coverage,
        "byte_fallback": data.byte_fallback,
    }


def _record_path(workdir: Path) -> Path:
    return workdir / "data" / "vocabulary.json"


def _write_record(workdir: Path, record: dict[str, Any]) -> None:
    write_whole(_record_path(workdir), (json.dumps(record, indent=2) + "\n").encode())
