# SPDX-License-Identifier: Apache-2.0
"""From a config to batches: vocabulary, tokenised corpora, and Grain's loading threads."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformer_jax.config import Config
from transformer_jax.data import corpora
from transformer_jax.data.batch import Batch
from transformer_jax.data.batching import ALL, BatchPlan, Share, assemble
from transformer_jax.data.run_vocabulary import (
    file_digest,
    model_path,
    prepare_vocabulary,
    read_record,
)
from transformer_jax.data.tokenized import TokenizedCorpus, made_from, tokenize
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.files import write_whole

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


def prepare(config: Config, workdir: Path, *, resumes: Config | None = None) -> Dataset:
    """The data of a run, made on the first start and found again on the next.

        <workdir>/vocabulary.model                      learned, or copied from data.vocab_path
        <workdir>/data/vocabulary.json                  what it was learned or copied from
        <workdir>/data/train/                           token ids
        <workdir>/data/{validation,test}.{source,target}.txt

    Where the text is another one, the ids are made anew, and so is the vocabulary until there is a
    checkpoint.

    Args:
      config: of the run.
      workdir: its folder.
      resumes: the config that the folder's checkpoints were made with; None if it has none. Data may
        have moved since then, as long as the new places have the same.

    Raises:
      UserError: the corpus or the vocabulary cannot be used, or a new place has another one.
    """
    _check_records()
    data = config.data
    (workdir / "data").mkdir(parents=True, exist_ok=True)
    train = corpora.load(data, "train")
    assert train is not None  # `load` raises for a run without training data
    texts = {split: corpora.load(data, split) for split in ("validation", "test")}
    for corpus in texts.values():
        if corpus is not None:
            len(corpus)  # what is wrong with a file is told now, not after an hour of tokenising
    if resumes is not None:
        _check_moved(config, resumes, workdir, train, texts)
    vocabulary = prepare_vocabulary(data, train, workdir, keep=resumes is not None)

    for split, corpus in texts.items():
        _write_text(workdir, split, corpus)
    folder = workdir / "data" / "train"
    tokens = tokenize(train, vocabulary, max_length=data.max_length, folder=folder)
    return Dataset(vocabulary, tokens, workdir)


def _check_records() -> None:
    """Raises: UserError, where there is no array_record, which has no wheel for Windows."""
    if importlib.util.find_spec("array_record") is None:
        raise UserError(
            "array_record, which training keeps its data in, is not installed; on Windows there is none: "
            "train under WSL 2, and translate anywhere"
        )


def _check_moved(
    config: Config,
    old: Config,
    workdir: Path,
    train: corpora.Corpus,
    texts: Mapping[str, corpora.Corpus | None],
) -> None:
    """Whether data that has other names than before is the same.

    Raises:
      UserError: names what is not.
    """
    new, model = config.data, model_path(workdir)
    moved = new.vocab_path not in ("", old.data.vocab_path)
    if moved and file_digest(Path(new.vocab_path)) != file_digest(model):
        raise UserError(
            f"config.data.vocab_path={new.vocab_path!r} has another vocabulary than the one that {workdir} "
            f"was made with; use another --workdir, or a file with the bytes of {model}"
        )
    if new.path == old.data.path:
        return
    record = made_from(workdir / "data" / "train") or read_record(workdir)
    other = [] if record is None or train.made(record) else ["train"]
    for split, corpus in texts.items():
        paths = _text_paths(workdir, split)
        kept = [path.read_bytes() for path in paths if path.exists()]
        if corpus is not None and len(kept) == 2 and kept != _sides(corpus):
            other.append(split)
    if other:
        raise UserError(
            f"config.data.path={new.path!r} leads to another text of {' and '.join(other)} than the one that "
            f"{workdir} was made from; use another --workdir, or a place where the same text is"
        )


def prepared(config: Config, workdir: Path) -> Dataset:
    """What `prepare` left in the run folder; another process may have done that."""
    vocabulary = Vocabulary.load(model_path(workdir), size=config.data.vocab_size)
    return Dataset(vocabulary, TokenizedCorpus.load(workdir / "data" / "train"), workdir)


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
    import grain  # here: an evaluation reads text alone, and needs neither Grain nor records

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
    paths = _text_paths(workdir, split)
    if not all(path.exists() for path in paths):
        return None
    # Bytes, since reading as text would take a carriage return for the end of a line.
    source, target = (path.read_bytes().decode().split("\n")[:-1] for path in paths)
    if len(source) != len(target):
        raise UserError(f"{paths[0]} and {paths[1]} have different numbers of lines; delete both")
    return source, target


def _write_text(workdir: Path, split: str, corpus: corpora.Corpus | None) -> None:
    """Keep the lines of a split; none that an earlier config had and this one has not."""
    paths = _text_paths(workdir, split)
    if corpus is None:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    if not any(source.strip() and target.strip() for source, target in corpus):
        raise UserError(f"{split} has no usable pair, each has an empty side: {corpus.name}")
    for path, lines in zip(paths, _sides(corpus), strict=True):
        if not path.exists() or path.read_bytes() != lines:
            write_whole(path, lines)


def _sides(corpus: corpora.Corpus) -> list[bytes]:
    """The lines of the source and of the target, as they are kept."""
    return [
        "".join(pair[number].replace("\n", " ") + "\n" for pair in corpus).encode()
        for number in range(2)
    ]


def _text_paths(workdir: Path, split: str) -> list[Path]:
    return [workdir / "data" / f"{split}.{side}.txt" for side in ("source", "target")]
