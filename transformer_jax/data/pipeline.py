# SPDX-License-Identifier: Apache-2.0
"""From a config to batches: vocabulary, tokenised corpora, and Grain's loading threads."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import grain

from transformer_jax.config import Config
from transformer_jax.data import corpora
from transformer_jax.data.batch import Batch
from transformer_jax.data.batching import ALL, BatchPlan, Share, assemble
from transformer_jax.data.tokenized import TokenizedCorpus, tokenize
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.errors import UserError
from transformer_jax.files import write_whole

log = logging.getLogger(__name__)

Text = tuple[list[str], list[str]]  # source and reference lines

_THREADS, _BATCHES_AHEAD = 2, 8


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a run reads; all of it lies in the run folder."""

    vocabulary: Vocabulary
    train: TokenizedCorpus
    workdir: Path

    def text(self, split: str) -> Text | None:
        """The lines of "validation" or "test"; None if the run has no such split."""
        return read_text(self.workdir, split)


def prepare(config: Config, workdir: Path) -> Dataset:
    """The data of a run, made on the first start and found again on the next.

        <workdir>/vocabulary.model                      trained, or copied from data.vocab_path
        <workdir>/data/train/                           token ids
        <workdir>/data/{validation,test}.{source,target}.txt

    Raises:
      UserError: the corpus or the vocabulary cannot be used.
    """
    data = config.data
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    train = corpora.load(data, "train")
    assert train is not None  # `load` raises for a run without training data
    validation, test = corpora.load(data, "validation"), corpora.load(data, "test")
    for corpus in (validation, test):
        if corpus is not None:
            len(corpus)  # what is wrong with a file is told now, not after an hour of tokenising
    vocabulary = _vocabulary(config, train, workdir / "vocabulary.model")

    for split, corpus in (("validation", validation), ("test", test)):
        if corpus is not None:
            _write_text(workdir, split, corpus)
    folder = workdir / "data" / "train"
    tokens = tokenize(train, vocabulary, max_length=data.max_length, folder=folder)
    return Dataset(vocabulary, tokens, workdir)


def prepared(config: Config, workdir: Path) -> Dataset:
    """What `prepare` left in the run folder; another process may have done that."""
    vocabulary = Vocabulary.load(workdir / "vocabulary.model", size=config.data.vocab_size)
    return Dataset(vocabulary, TokenizedCorpus.load(workdir / "data" / "train"), workdir)


def _vocabulary(config: Config, train: corpora.Corpus, path: Path) -> Vocabulary:
    size = config.data.vocab_size
    if path.exists():
        return Vocabulary.load(path, size=size)
    if config.data.vocab_path:
        given = Vocabulary.load(config.data.vocab_path, size=size)
        write_whole(path, Path(config.data.vocab_path).read_bytes())
        return given
    log.info("learning a vocabulary of %d pieces", size)
    return train_vocabulary(
        corpora.sentences(train),
        size=size,
        kind=config.data.vocab_type,
        path=path,
        normalization=config.data.normalization,
        coverage=config.data.character_coverage,
        byte_fallback=config.data.byte_fallback,
    )


def training_batches(
    dataset: Dataset,
    config: Config,
    *,
    start_step: int,
    rows_multiple: int = 1,
    share: Share = ALL,
) -> Iterator[Batch]:
    """The batches of start_step, start_step + 1, ..., without end, made by other threads.

    Each process gets its share of the rows of a global batch that does not depend on how many
    processes or devices there are, but for empty rows at its end: their number is a multiple of
    `rows_multiple`.
    """
    if rows_multiple % share.of:
        raise ValueError(f"{rows_multiple=} must be a multiple of {share.of=}")
    plan = BatchPlan(
        dataset.train.lengths,
        batch_tokens=config.data.batch_tokens,
        max_length=config.data.max_length,
        seed=config.train.seed,
        rows_multiple=rows_multiple,
    )
    source = _Batches(dataset.train, plan, share)
    steps = grain.MapDataset.source(range(start_step, _ENDLESS)).map(source.batch)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(steps.to_iter_dataset(options))


_ENDLESS = 2**40  # steps: more than any run has


@dataclasses.dataclass(frozen=True)
class _Batches:
    """The batches of a plan, read from the tokenised corpus."""

    corpus: TokenizedCorpus
    plan: BatchPlan
    share: Share

    def batch(self, step: int) -> Batch:
        planned = self.plan.batch(step)
        numbers = self.share.rows(len(planned.rows))
        rows = [planned.rows[number] for number in numbers]
        pairs = iter(self.corpus.read([pair for row in rows for pair in row]))
        filled = [[next(pairs) for _ in row] for row in rows]
        return assemble(filled, planned.row_length, numbers)


def read_text(workdir: Path, split: str) -> Text | None:
    """The source and reference lines of a split, from a run folder."""
    paths = [_text_path(workdir, split, side) for side in ("source", "target")]
    if not all(path.exists() for path in paths):
        return None
    # Bytes, since reading as text would take a carriage return for the end of a line.
    source, target = (path.read_bytes().decode().split("\n")[:-1] for path in paths)
    if len(source) != len(target):
        raise UserError(f"{paths[0]} and {paths[1]} have different numbers of lines; delete both")
    return source, target


def _write_text(workdir: Path, split: str, corpus: corpora.Corpus) -> None:
    if not any(source.strip() and target.strip() for source, target in corpus):
        raise UserError(f"{split} has no usable pair, each has an empty side: {corpus.name}")
    for number, side in enumerate(("source", "target")):
        path = _text_path(workdir, split, side)
        lines = "".join(pair[number].replace("\n", " ") + "\n" for pair in corpus).encode()
        if not path.exists() or path.read_bytes() != lines:
            write_whole(path, lines)


def _text_path(workdir: Path, split: str, side: str) -> Path:
    return workdir / "data" / f"{split}.{side}.txt"
