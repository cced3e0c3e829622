# SPDX-License-Identifier: Apache-2.0
"""A corpus as token ids on disk: tokenised once, read in any order.

<folder>/pairs.array_record   one record a pair: the source's length, then both sides' ids
<folder>/lengths.npy          [n, 2] uint16, the only part that is held in memory
<folder>/report.json          what it was made from, and what was left out
"""

import dataclasses
import itertools
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError

log = logging.getLogger(__name__)

_CHUNK = 4096  # pairs that are tokenised at once
# A piece stands for at least one character, and few pieces for more than this many: a line with
# more characters a token of `max_length` is over-long, and not worth tokenising.
_MOST_CHARACTERS_A_TOKEN = 64


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """Pairs of token ids, EOS at the end of each side."""

    lengths: np.ndarray  # [n, 2] uint16: source and target tokens
    report: dict[str, object]
    records: grain.sources.ArrayRecordDataSource

    @classmethod
    def load(cls, folder: Path) -> "TokenizedCorpus":
        """What `tokenize` wrote."""
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        lengths = np.load(folder / "lengths.npy", mmap_mode="r")
        records = grain.sources.ArrayRecordDataSource(str(folder / "pairs.array_record"))
        return cls(lengths, report, records)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(source ids, target ids) of each of these pairs."""
        if not indices:
            return []
        return [_unpack(record) for record in self.records.__getitems__(list(indices))]


def tokenize(
    corpus: Corpus, vocabulary: Vocabulary, *, max_length: int, folder: Path
) -> TokenizedCorpus:
    """Tokenise a corpus into `folder`, or load what is there already from the same corpus.

    Pairs with an empty side, and pairs of which a side has more than `max_length` tokens, are left
    out and counted. A process that dies leaves nothing that is taken for whole.

    Raises:
      UserError: no pair is left.
    """
    made_from = {
        "corpus": corpus.name,
        "vocabulary": vocabulary.fingerprint,
        "max_length": max_length,
    }
    report_path = folder / "report.json"
    if report_path.exists():
        report = json.loads(report_path.read_text(encoding="utf-8"))
        if report["made_from"] == made_from:
            return TokenizedCorpus.load(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    counts = _write(corpus, vocabulary, max_length, temporary)
    log.info("%s: %s", folder.name, ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    if not counts["pairs"]:
        raise UserError(
            f"{folder.name} has no usable pair ({counts['empty']} with an empty side, "
            f"{counts['over-long']} over config.data.max_length={max_length}): {corpus.name}"
        )
    report_text = json.dumps({"made_from": made_from, "counts": counts}, indent=2)
    (temporary / "report.json").write_text(report_text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return TokenizedCorpus.load(folder)


def _write(corpus: Corpus, vocabulary: Vocabulary, max_length: int, folder: Path) -> dict[str, int]:
    """Write the records and the table of lengths; returns the counts of the report."""
    lengths: list[np.ndarray] = []
    counts = {"pairs": 0, "empty": 0, "over-long": 0}
    writer = ArrayRecordWriter(str(folder / "pairs.array_record"), "group_size:1")
    progress = tqdm(total=len(corpus), unit="pair", desc=f"tokenising {folder.stem}", disable=None)
    for chunk in _chunks(iter(corpus)):
        kept = _not_empty(chunk, counts)
        kept = _not_endless(kept, max_length * _MOST_CHARACTERS_A_TOKEN, counts)
        sides = [vocabulary.encode([pair[side] for pair in kept]) for side in (0, 1)]
        sizes = []
        for source, target in zip(*sides, strict=True):
            if max(len(source), len(target)) > max_length:
                counts["over-long"] += 1
                continue
            writer.write(_pack(source, target))
            sizes.append((len(source), len(target)))
        lengths.append(np.array(sizes, np.uint16).reshape(-1, 2))
        counts["pairs"] += len(sizes)
        progress.update(len(chunk))
    progress.close()
    writer.close()
    np.save(folder / "lengths.npy", np.concatenate([np.zeros((0, 2), np.uint16), *lengths]))
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


def _pack(source: list[int], target: list[int]) -> bytes:
    return np.array([len(source), *source, *target], np.uint32).tobytes()


def _unpack(record: bytes) -> tuple[np.ndarray, np.ndarray]:
    array = np.frombuffer(record, np.uint32)
    return array[1 : 1 + array[0]], array[1 + array[0] :]
