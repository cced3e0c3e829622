# SPDX-License-Identifier: Apache-2.0
"""From files to batches: made once, resumed at any step, split over processes, nothing lost."""

import dataclasses
import gzip
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax.config import Config, default_config, resolve
from transformer_jax.data import corpora, pipeline
from transformer_jax.data.batch import Batch
from transformer_jax.data.batching import BatchPlan, Share
from transformer_jax.data.tokenized import TokenizedCorpus
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.errors import UserError

COLOURS, THINGS, VERBS = ("red", "green", "blue"), ("house", "dog", "cat", "bird"), ("is", "was")
PAIRS = [
    (f"the {colour} {thing} {verb} number {n}", f"{verb} {n} : {thing} -- {colour} {'!' * (n % 5)}")
    for n, (colour, thing, verb) in enumerate(list(itertools.product(COLOURS, THINGS, VERBS)) * 10)
]


def write(folder: Path, split: str, pairs: list[tuple[str, str]]) -> None:
    """The split's two files."""
    folder.mkdir(exist_ok=True)
    for language, side in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        (folder / f"{split}.{language}").write_bytes("".join(f"{s}\n" for s in side).encode())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """240 pairs to train on, 30 for validation and 3 for the test."""
    for split, pairs in {"train": PAIRS, "validation": PAIRS[:30], "test": PAIRS[:3]}.items():
        write(tmp_path / "text", split, pairs)
    config = default_config()
    config.data.source = "text"
    config.data.path = str(tmp_path / "text" / "{split}.{lang}")
    config.data.vocab_size = 80
    config.data.max_length = 64
    config.data.batch_tokens = 512
    return resolve(config)


def with_data(config: Config, **changes: object) -> Config:
    """The config with other data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    """The first so many batches."""
    return list(itertools.islice(batches, count))


def same(first: list[Batch], second: list[Batch]) -> bool:
    """Whether all numbers of two lists of batches are equal."""
    leaves = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(leaves[0]) == len(leaves[1]) and all(map(np.array_equal, *leaves))


def texts(batch: Batch, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The sentence pairs of a batch, as text."""
    pairs = []
    for row in range(len(batch.rows)):
        for segment in range(1, batch.source.segments[row].max() + 1):
            sides = (
                side.ids[row][side.segments[row] == segment]
                for side in (batch.source, batch.target)
            )
            pairs.append(tuple(vocabulary.decode(list(sides))))
    return pairs


def expected(pairs: list[tuple[str, str]]) -> Counter:
    """How often each pair occurs, spaces normalised."""
    return Counter(tuple(" ".join(side.split()) for side in pair) for pair in pairs)


def test_an_epoch_of_batches_is_the_corpus(config: Config, tmp_path: Path) -> None:
    dataset = pipeline.prepare(config, tmp_path / "run")
    plan = BatchPlan(
        dataset.train.lengths,
        batch_tokens=config.data.batch_tokens,
        max_length=config.data.max_length,
        seed=config.train.seed,
    )
    steps = plan.batches_per_epoch()
    batches = take(pipeline.training_batches(dataset, config, start_step=0), steps)
    found = Counter(pair for batch in batches for pair in texts(batch, dataset.vocabulary))
    assert found == expected(PAIRS)


def test_the_run_folder_has_all_that_evaluation_needs(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    dataset = pipeline.prepare(config, run)
    assert Vocabulary.load(run / "vocabulary.model").size == 80
    assert dataset.text("validation") == tuple(map(list, zip(*PAIRS[:30], strict=True)))
    assert pipeline.read_text(run, "test") == tuple(map(list, zip(*PAIRS[:3], strict=True)))
    assert dataset.text("train") is None


def test_a_second_start_makes_nothing_anew(config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipeline.prepare(config, run)
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert {path.name for path in files} >= {"vocabulary.model", "lengths.npy", "test.source.txt"}
    pipeline.prepare(config, run)
    assert files == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_a_changed_corpus_is_noticed(config: Config, tmp_path: Path) -> None:
    pipeline.prepare(config, tmp_path / "run")
    write(tmp_path / "text", "train", PAIRS[:100])
    write(tmp_path / "text", "test", PAIRS[5:9])
    dataset = pipeline.prepare(config, tmp_path / "run")
    assert len(dataset.train) == 100
    assert dataset.text("test")[0] == [source for source, _ in PAIRS[5:9]]


def test_splits_that_a_run_does_not_have(config: Config, tmp_path: Path) -> None:
    config = with_data(config, splits={"train": "train", "validation": "", "test": ""})
    dataset = pipeline.prepare(config, tmp_path / "run")
    assert dataset.text("validation") is None
    assert dataset.text("test") is None


def test_odd_characters_do_not_shift_the_lines(config: Config, tmp_path: Path) -> None:
    odd = [("a\rb", "one\u2028two"), ("", "\x0c"), (" c  d ", "\x85e\x1c")]
    write(tmp_path / "text", "test", odd)
    dataset = pipeline.prepare(config, tmp_path / "run")
    assert dataset.text("test") == tuple(map(list, zip(*odd, strict=True)))


def test_resuming_gives_the_batches_of_an_unbroken_run(config: Config, tmp_path: Path) -> None:
    dataset = pipeline.prepare(config, tmp_path / "run")
    unbroken = take(pipeline.training_batches(dataset, config, start_step=0), 60)
    assert not same(unbroken[:1], unbroken[1:2])
    again = pipeline.prepare(config, tmp_path / "run")
    for step in (0, 1, 37, 59):
        resumed = take(pipeline.training_batches(again, config, start_step=step), 60 - step)
        assert same(resumed, unbroken[step:]), f"resumed at step {step}"


def test_processes_share_what_one_process_has(config: Config, tmp_path: Path) -> None:
    dataset = pipeline.prepare(config, tmp_path / "run")

    def batches(*parts: int, of: int) -> list[Batch]:
        return take(
            pipeline.training_batches(
                dataset,
                config,
                start_step=3,
                rows_multiple=4,
                share=Share(parts, of),
            ),
            10,
        )

    whole = batches(0, of=1)
    shares = [batches(index, of=4) for index in range(4)]
    joined = [
        jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        for parts in zip(*shares, strict=True)
    ]
    assert same(joined, whole)
    assert all(batch.rows.tolist() == list(range(len(batch.rows))) for batch in joined)
    # The first and the last quarter, as where a process's devices are no neighbours on the mesh.
    quarters = [
        jax.tree.map(lambda *parts: np.concatenate(parts), first, last)
        for first, last in zip(shares[0], shares[3], strict=True)
    ]
    assert same(batches(0, 3, of=4), quarters)
    with pytest.raises(ValueError, match="multiple of"):
        batches(0, of=3)


def test_the_number_of_devices_does_not_change_the_batches(config: Config, tmp_path: Path) -> None:
    config = with_data(config, batch_tokens=700)
    dataset = pipeline.prepare(config, tmp_path / "run")
    one, eight = (
        take(pipeline.training_batches(dataset, config, start_step=0, rows_multiple=rows), 10)
        for rows in (1, 8)
    )
    count = len(one[0].rows)
    assert count == 10 and len(eight[0].rows) == 16, "this batch should need empty rows"
    assert not any(batch.source.segments[count:].any() for batch in eight)
    assert same(one, [jax.tree.map(lambda array: array[:count], batch) for batch in eight])


def test_another_process_finds_what_was_prepared(config: Config, tmp_path: Path) -> None:
    made = pipeline.prepare(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "text")  # it need not see the corpus
    found = pipeline.prepared(config, tmp_path / "run")
    assert same(
        *(take(pipeline.training_batches(data, config, start_step=0), 3) for data in (made, found))
    )


def test_three_pairs_make_batches_without_end(config: Config, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / "text", split, PAIRS[:3])
    config = with_data(config, vocab_size=33)
    dataset = pipeline.prepare(config, tmp_path / "run")
    for batch in take(pipeline.training_batches(dataset, config, start_step=10**9), 5):
        assert Counter(texts(batch, dataset.vocabulary)) == expected(PAIRS[:3])


def test_what_goes_wrong_in_a_loading_thread_is_raised(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = pipeline.prepare(config, tmp_path / "run")

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(TokenizedCorpus, "read", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        next(pipeline.training_batches(dataset, config, start_step=0))


def test_a_vocabulary_given_by_path_is_copied(config: Config, tmp_path: Path) -> None:
    given = tmp_path / "given.model"
    sentences = [side for pair in PAIRS for side in pair]
    made = train_vocabulary(sentences, size=70, kind="unigram", path=given)
    config = with_data(config, vocab_path=str(given), vocab_size=70)
    dataset = pipeline.prepare(config, tmp_path / "run")
    assert dataset.vocabulary.fingerprint == made.fingerprint
    given.unlink()
    assert pipeline.prepare(config, tmp_path / "run").vocabulary.fingerprint == made.fingerprint


UMLAUTS = [(f"{source} ä", f"{target} ö") for source, target in PAIRS]


def unknown_lines(run: Path) -> int:
    """How many training lines have unknown characters."""
    return TokenizedCorpus.load(run / "data" / "train").report["counts"]["unknown"]


def test_a_vocabulary_is_of_the_text_that_there_was_before_the_first_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = pipeline.prepare(config, run).vocabulary.fingerprint
    write(tmp_path / "text", "train", UMLAUTS)
    assert pipeline.prepare(config, run, resumes=config).vocabulary.fingerprint == first
    assert unknown_lines(run) == 480, "weights were learned with that vocabulary, so it stays"
    second = pipeline.prepare(config, run).vocabulary.fingerprint
    assert second != first
    assert unknown_lines(run) == 0
    for changes in ({"normalization": "nfkc"}, {"character_coverage": 0.98}):
        other = pipeline.prepare(with_data(config, **changes), run).vocabulary.fingerprint
        assert other not in (first, second)
    (run / "data" / "vocabulary.json").unlink()  # as earlier versions left it
    write(tmp_path / "text", "train", PAIRS)
    assert pipeline.prepare(config, run).vocabulary.fingerprint == other


def test_a_death_between_the_record_and_the_vocabulary(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    first = pipeline.prepare(config, run).vocabulary.fingerprint
    write(tmp_path / "text", "train", UMLAUTS)
    replace = Path.replace

    def dying(path: Path, target: Path) -> Path:
        if target.name == "vocabulary.model":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config, run)
    monkeypatch.undo()
    assert Vocabulary.load(run / "vocabulary.model").fingerprint == first
    assert pipeline.prepare(config, run).vocabulary.fingerprint != first
    assert unknown_lines(run) == 0


def test_text_that_was_moved_or_packed_is_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, splits = tmp_path / "run", {"train": "t", "validation": "v", "test": "test"}
    pipeline.prepare(config, run)
    made = {path: path.stat().st_mtime_ns for path in run.rglob("*.*record")}
    (tmp_path / "new").mkdir()
    for path in (tmp_path / "text").iterdir():
        name = path.name.replace("train", "t").replace("validation", "v")
        (tmp_path / "new" / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    moved = with_data(config, path=str(tmp_path / "new" / "{split}.{lang}"), splits=splits)
    pipeline.prepare(moved, run, resumes=config)
    assert made == {path: path.stat().st_mtime_ns for path in run.rglob("*.*record")}
    # From then on that is where it is: nothing more is read but the short splits.
    read = []
    lines = corpora._lines
    monkeypatch.setattr(corpora, "_lines", lambda path: read.append(path.name) or lines(path))
    pipeline.prepare(moved, run, resumes=moved)
    assert set(read) == {"v.en.gz", "v.de.gz", "test.en.gz", "test.de.gz"}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_path_that_leads_to_another_text_is_refused(
    config: Config, tmp_path: Path, split: str
) -> None:
    run = tmp_path / "run"
    pipeline.prepare(config, run)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shutil.copytree(tmp_path / "text", tmp_path / "new")
    write(tmp_path / "new", split, UMLAUTS)
    moved = with_data(config, path=str(tmp_path / "new" / "{split}.{lang}"))
    with pytest.raises(
        UserError,
        match=rf"config\.data\.path='.*new.*' leads to another text of {split} than .*run was",
    ):
        pipeline.prepare(moved, run, resumes=config)
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pipeline.prepare(moved, run)  # without checkpoints it is a new beginning


def test_a_vocabulary_file_that_was_moved(config: Config, tmp_path: Path) -> None:
    given, new, run = tmp_path / "given.model", tmp_path / "new.model", tmp_path / "run"
    sentences = [side for pair in PAIRS for side in pair]
    train_vocabulary(sentences, size=70, kind="unigram", path=given)
    config = with_data(config, vocab_path=str(given), vocab_size=70)
    made = pipeline.prepare(config, run).vocabulary.fingerprint
    moved = with_data(config, vocab_path=str(new))
    with pytest.raises(UserError, match=r"new\.model cannot be read: No such file"):
        pipeline.prepare(moved, run, resumes=config)
    given.rename(new)
    for data in (moved, config):  # the recorded place need not be there
        assert pipeline.prepare(data, run, resumes=config).vocabulary.fingerprint == made
    train_vocabulary(sentences, size=70, kind="bpe", path=new)
    with pytest.raises(UserError, match=r"new\.model' has another vocabulary than .*run was made"):
        pipeline.prepare(moved, run, resumes=config)
    assert pipeline.prepare(moved, run).vocabulary.fingerprint != made


def test_lines_of_a_split_that_there_no_longer_is(config: Config, tmp_path: Path) -> None:
    pipeline.prepare(config, tmp_path / "run")
    config = with_data(config, splits={"train": "train", "validation": "validation", "test": ""})
    dataset = pipeline.prepare(config, tmp_path / "run")
    assert dataset.text("test") is None
    assert len(dataset.text("validation")[0]) == 30


def test_a_vocabulary_of_another_size_is_refused(config: Config, tmp_path: Path) -> None:
    given = tmp_path / "given.model"
    train_vocabulary([side for pair in PAIRS for side in pair], size=70, kind="bpe", path=given)
    with pytest.raises(UserError, match=r"given\.model has 70 pieces .*vocab_size=80"):
        pipeline.prepare(with_data(config, vocab_path=str(given)), tmp_path / "run")
    assert not (tmp_path / "run" / "vocabulary.model").exists()


def test_a_corpus_of_blank_lines_is_refused(config: Config, tmp_path: Path) -> None:
    write(tmp_path / "text", "train", [("", " ")] * 5)
    with pytest.raises(UserError, match="no usable sentence"):
        pipeline.prepare(config, tmp_path / "run")
    write(tmp_path / "text", "train", [("", side) for pair in PAIRS for side in pair])
    with pytest.raises(UserError, match="train has no usable pair"):
        pipeline.prepare(config, tmp_path / "run")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_a_usable_pair_is_refused(
    config: Config, tmp_path: Path, split: str
) -> None:
    write(tmp_path / "text", split, [("", "nothing")])
    with pytest.raises(UserError, match=f"{split} has no usable pair"):
        pipeline.prepare(config, tmp_path / "run")


def test_a_missing_file_is_told_before_anything_is_made(config: Config, tmp_path: Path) -> None:
    (tmp_path / "text" / "test.de").unlink()
    with pytest.raises(UserError, match=r"test\.de does not exist"):
        pipeline.prepare(config, tmp_path / "run")
    assert not (tmp_path / "run" / "vocabulary.model").exists(), (
        "an hour of tokenising would have come before the error"
    )
