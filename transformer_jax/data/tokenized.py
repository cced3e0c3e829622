# SPDX-License-Identifier: Apache-2.0
"""A corpus as token ids on disk: tokenised once, read in any order.

<folder>/pairs.array_record   one record a pair: the source's length, then both sides' ids
<folder>/lengths.npy          [n, 2], the only part of which memory must hold anything
<folder>/report.json          what it was made from, what was left out or has unknown characters, the
                              type of the ids
"""

import dataclasses
import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer_jax.data.batch import UNKNOWN
from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.files import write_whole
from transformer_jax.progress import Bar

if TYPE_CHECKING:
    import grain

log = logging.getLogger(__name__)

_CHUNK = 4096  # pairs that are tokenised at once
# A group of one record is read alone. Uncompressed: a sentence of ids hardly shrinks, and reading a
# batch takes half the time.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_FORMAT = 2  # of what this module writes; another number means that it is written again
# A piece stands for at least one character, and few pieces for more than this many: a line with
# more characters a token of `max_length` is over-long, and not worth tokenising.
_MOST_CHARACTERS_A_TOKEN = 64


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """Pairs of token ids, EOS at the end of each side."""

    lengths: np.ndarray  # [n, 2]: source and target tokens
    report: dict[str, Any]
    records: "grain.sources.ArrayRecordDataSource"

    @classmethod
    def load(cls, folder: Path) -> "TokenizedCorpus":
        """What `tokenize` wrote.

        Raises:
          UserError: it has not, or not to the end.
        """
        import grain  # here, as ArrayRecordWriter below: see pipeline.training_batches

        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            lengths = np.load(folder / "lengths.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} has no whole tokenised corpus ({error}); delete it, and the run's own command "
                "makes it again"
            ) from None
        records = grain.sources.ArrayRecordDataSource(str(folder / "pairs.array_record"))
        return cls(lengths, report, records)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(source ids, target ids) of each of these pairs."""
        if not indices:
            return []
        ids_type = np.dtype(self.report["ids_type"])
        return [_unpack(record, ids_type) for record in self.records.__getitems__(list(indices))]


def tokenize(
    corpus: Corpus, vocabulary: Vocabulary, *, max_length: int, folder: Path
) -> TokenizedCorpus:
    """Tokenise a corpus into `folder`, or load what is there already from the same corpus.

    Pairs with an empty side, and pairs of which a side has more than `max_length` tokens, are left
    out and counted. A process that dies leaves nothing that is taken for whole.

    Raises:
      UserError: no pair is left.
    """
    settings = {
        "format": _FORMAT,
        "vocabulary": vocabulary.fingerprint,
        "max_length": max_length,
    }
    before = made_from(folder)
    if before is not None and settings.items() <= before.items() and corpus.made(before):
        tokenized = TokenizedCorpus.load(folder)
        if before["corpus"] != corpus.name:  # it moved; the next start need not read it
            _write_report(
                folder, tokenized.report | {"made_from": before | {"corpus": corpus.name}}
            )
        return tokenized
    if before is not None:
        log.warning("%s was made from other data or settings; it is made anew", folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    largest = max(vocabulary.size, max_length)
    ids_type = np.dtype(np.uint16 if largest < 2**16 else np.uint32)
    counts = _write(corpus, vocabulary, max_length, temporary, ids_type)
    log.info(
        "%s: %s sentence pairs; left out: %s with an empty side, %s of more than %s tokens",
        folder.name,
        *(f"{counts[kind]:,}" for kind in ("pairs", "empty", "over-long")),
        max_length,
    )
    if not counts["pairs"]:
        raise UserError(
            f"{folder.name} has no usable pair ({counts['empty']} with an empty side, "
            f"{counts['over-long']} over config.data.max_length={max_length}): {corpus.name}"
        )
    log.log(
        logging.WARNING if counts["unknown"] else logging.INFO,
        "%s: %s of %s lines have characters that the vocabulary does not know",
        folder.name,
        f"{counts['unknown']:,}",
        f"{2 * counts['pairs']:,}",
    )
    made = settings | corpus.record()
    _write_report(temporary, {"made_from": made, "counts": counts, "ids_type": ids_type.name})
    (folder / "report.json").unlink(missing_ok=True)  # first: without it the old folder is nothing
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return TokenizedCorpus.load(folder)


def made_from(folder: Path) -> dict[str, Any] | None:
    """The record of what a folder was made from; None if there is none."""
    try:
        return dict(json.loads((folder / "report.json").read_text(encoding="utf-8"))["made_from"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    write_whole(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())


def _write(
    corpus: Corpus, vocabulary: Vocabulary, max_length: int, folder: Path, ids_type: np.dtype
) -> dict[str, int]:
    """Write the records and the table of lengths; returns the counts of the report."""
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths: list[np.ndarray] = []
    counts = {"pairs": 0, "empty": 0, "over-long": 0, "unknown": 0}  # the last: lines, not pairs
    writer = ArrayRecordWriter(str(folder / "pairs.array_record"), _WRITER_OPTIONS)
    progress = Bar(len(corpus), "pairs", f"tokenising {folder.stem}")
    for chunk in _chunks(iter(corpus)):
        kept = _not_empty(chunk, counts)
        kept = _not_endless(kept, max_length * _MOST_CHARACTERS_A_TOKEN, counts)
        sources = vocabulary.encode([source for source, _ in kept])
        targets = vocabulary.encode_targets([target for _, target in kept])
        sizes = []
        for source, target in zip(sources, targets, strict=True):
            if min(len(source), len(target)) == 1:  # but for its end: nothing that one sees
                counts["empty"] += 1
                continue
            if max(len(source), len(target)) > max_length:
                counts["over-long"] += 1
                continue
            counts["unknown"] += (UNKNOWN in source) + (UNKNOWN in target)
            writer.write(_pack(source, target, ids_type))
            sizes.append((len(source), len(target)))
        lengths.append(np.array(sizes, ids_type).reshape(-1, 2))
        counts["pairs"] += len(sizes)
        progress.update(len(chunk))
    progress.close()
    writer.close()
    np.save(folder / "lengths.npy", np.concatenate([np.zeros((0, 2), ids_type), *lengths]))
    return counts


def _chunks(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        yield chunk


def _not_empty(pairs: list[Pair], counts: dict[str, int]) -> list[Pair]:
    kept = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
    counts["empty"] += len(pairs) - len(kept)
    return kept


def _not_endless(pairs: list[Pair], most: int, counts: dict[str, int]) -> list[Pair]:
    kept = [pair for pair in pairs if max(map(len, pair)) <= most]
    counts["over-long"] += len(pairs) - len(kept)
    return kept


def _pack(source: list[int], target: list[int], ids_type: np.dtype) -> bytes:
    return np.array([len(source), *source, *target], ids_type).tobytes()


def _unpack(record: bytes, ids_type: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    array = np.frombuffer(record, ids_type)
    end = 1 + int(array[0])
    return array[1:end], array[end:]
