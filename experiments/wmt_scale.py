# SPDX-License-Identifier: Apache-2.0
"""A made-up corpus as large as WMT 2014's English-German, and what a run does with it before it learns.

    python -m experiments.wmt_scale --folder=runs/wmt
    python -m experiments.wmt_scale --folder=runs/wmt --kill --train_flags=--config.data.character_coverage=1.0

Writes 4.5 million pairs, unless they are there, and starts a run of configs/base.py on them. Prints the
minutes and the most memory of each phase until the second step, the disk that the run folder takes, and
what the vocabulary is like. With --kill a second run, which has the first one's vocabulary, is killed
(-9) in the middle of tokenising and started again. The text means nothing, but its sentences are as long, its words as many and as unequally
frequent as those of the real one; as in Common Crawl, thousands of characters occur once or twice.
"""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from transformer_jax.data.batch import UNKNOWN
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError, run_command

_FOLDER = flags.DEFINE_string("folder", None, "Of the corpus and the run.", required=True)
_PAIRS = flags.DEFINE_integer("pairs", 4_500_000, "To train on.", lower_bound=1000)
_KILL = flags.DEFINE_bool("kill", False, "Kill the run while it tokenises, start it again.")
_FLAGS = flags.DEFINE_list("train_flags", [], "More for the training command, separated by commas.")

_AT_ONCE = 20_000  # pairs
# Words that the texts can have; about as many of them occur as in WMT's English and German.
_WORDS = {"en": 1_200_000, "de": 2_600_000}
_ONSETS = "b br c d dr f fl g gr h j k kr l m n p pr qu r s sch sp st t tr v w z".split()  # noqa: SIM905
_VOWELS = {"en": "a e i o u ea ee oo ou ai".split(), "de": "a e i o u ä ö ü ei ie au".split()}  # noqa: SIM905
_CODAS = ["", "", "", *"n r s t l m nd ng ck st ß".split()]  # noqa: SIM905
_RARE = [
    *map(chr, (*range(0x4E00, 0x5C00), *range(0xAC00, 0xB800), *range(0x3040, 0x30FF))),
    *map(chr, (*range(0x370, 0x3FF), *range(0x400, 0x52F), *range(0x621, 0x64A))),
    *map(chr, (*range(0x2100, 0x2400), *range(0x2500, 0x2700), *range(0x1F300, 0x1F600))),
]


def write_corpus(folder: Path, pairs: int) -> None:
    """train, validation and test, .en and .de; the same bytes every time."""
    sizes = {"train": pairs, "validation": 3000, "test": 3000}
    for number, language in enumerate(("en", "de")):
        words, shares = _words(language, np.random.default_rng((1, number)))
        for split, (name, size) in enumerate(sizes.items()):
            lengths = np.random.default_rng((2, split))  # of the English; both sides draw them
            rng = np.random.default_rng((3, split, number))
            with (folder / f"{name}.{language}").open("wb") as file:
                for start in range(0, size, _AT_ONCE):
                    count = min(_AT_ONCE, size - start)
                    counts = np.clip(lengths.lognormal(np.log(21), 0.65, count), 1, 400)
                    if language == "de":
                        counts *= rng.uniform(0.8, 1.1, count)
                    file.writelines(_lines(words, shares, counts.astype(int).clip(1), rng))


def _words(language: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Words, the most frequent first, and which share of the text is of this word or one before."""
    size = _WORDS[language]
    syllables = np.array(
        [a + b + c for a in _ONSETS for b in _VOWELS[language] for c in _CODAS], dtype=object
    )
    rng.shuffle(syllables)
    # Some syllables are frequent, so that there is something to merge; rare words are long.
    drawn = (len(syllables) * rng.random((4, size)) ** 3).astype(int)
    rank = np.arange(size)
    words = syllables[drawn[0]]
    words[:300] = [word[:3] for word in words[:300]]
    for extra, least in enumerate((3_000, 60_000, 700_000), start=1):
        more = (rank > least) | (rng.random(size) < 0.05)
        words = np.where(more, words + syllables[drawn[extra]], words)
    names = rng.random(size) < (0.5 if language == "de" else 0.2)
    words = np.where(names, [word.capitalize() for word in words], words)
    numbers = rng.random(size) < 0.03
    words = np.where(numbers, rng.integers(0, 100_000, size).astype(str), words)
    ends = rng.random(size)
    words = np.where(ends < 0.06, words + ",", np.where(ends > 0.995, words + "\u00a0%", words))
    shares = (rank + 2.7) ** -1.2  # Zipf's law, as Mandelbrot has it
    return np.array([f"{word} ".encode() for word in words], object), np.cumsum(
        shares
    ) / shares.sum()


def _lines(
    words: np.ndarray, shares: np.ndarray, counts: np.ndarray, rng: np.random.Generator
) -> Iterator[bytes]:
    """Lines of so many words; one in eighty has a character that is rare."""
    drawn = words[np.searchsorted(shares, rng.random(counts.sum()))].tolist()
    rare = rng.random(len(counts)) < 0.0125
    characters = (len(_RARE) ** rng.random(len(counts))).astype(int) - 1
    end = 0
    for number, count in enumerate(counts.tolist()):
        start, end = end, end + count
        extra = f"({_RARE[characters[number]]}) ".encode() if rare[number] else b""
        yield b"".join([extra, *drawn[start:end], b".\n"])


def run(folder: Path, name: str, *, kill_after: float | None = None) -> dict[str, float]:
    """Run the training command until its second step; the seconds of each phase.

    Prints them, with the most memory (RSS) in each. `kill_after`: kill it when it has tokenised for so
    many seconds.
    """
    workdir = folder / name
    command = [
        *(sys.executable, "-m", "transformer_jax.main", "--config=configs/base.py"),
        *("--config.data.source=text", f"--config.data.path={folder}/{{split}}.{{lang}}"),
        *(f"--workdir={workdir}", "--config.train.log_every=1", "--config.train.num_steps=1000"),
        # A step of base on a CPU is not what is measured here.
        *("--config.train.remat=True", "--config.train.logits_chunk=512", *_FLAGS.value),
    ]
    ends = {  # a phase ends when this file is there
        "learning the vocabulary": workdir / "vocabulary.model",
        "tokenising": workdir / "data" / "train" / "report.json",
        "planning, compiling, two steps": workdir / "metrics.jsonl",
    }
    seconds: dict[str, float] = {}
    process = subprocess.Popen(command)
    try:
        for phase, path in ends.items():
            start, most = time.perf_counter(), 0.0
            while process.poll() is None and not _is_there(path):
                most = max(most, _resident(process.pid))
                passed = time.perf_counter() - start
                if kill_after is not None and phase == "tokenising" and passed > kill_after:
                    print(f"  killed after {passed:.0f} s of tokenising")
                    return seconds
                time.sleep(0.2)
            seconds[phase] = time.perf_counter() - start
            print(
                f"  {phase:32} {seconds[phase] / 60:6.1f} minutes  {most / 1e3:5.2f} GB", flush=True
            )
        if process.poll() is not None:
            raise UserError("the run failed; its error is above")
    finally:
        process.kill()
        process.wait()
    return seconds


def _is_there(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return path.exists()
    return path.exists() and len(path.read_text(encoding="utf-8").split("\n")) > 2


def _resident(process: int) -> float:
    """MB that a process has in memory."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return sum(int(row.split()[1]) / 1e3 for row in status.split("\n") if row.startswith("VmRSS"))


def describe(folder: Path, name: str) -> None:
    """Print what the run folder takes, and what its vocabulary is like."""
    workdir = folder / name
    disk = sum(path.stat().st_size for path in (workdir / "data").rglob("*") if path.is_file())
    counts = json.loads((workdir / "data" / "train" / "report.json").read_text())["counts"]
    print(f"  data/ takes {disk / 1e9:.2f} GB; {counts}")
    vocabulary = Vocabulary.load(workdir / "vocabulary.model")
    found: Counter[str] = Counter()
    for language in ("en", "de"):
        with (folder / f"train.{language}").open(encoding="utf-8", newline="\n") as file:
            while text := file.read(2**24):
                found.update(text)
    single = [found[piece] for piece in vocabulary.pieces if len(piece) == 1]
    rare = sum(count <= 10 for count in single)
    unknown = sum(
        count for character, count in found.items() if UNKNOWN in vocabulary.encode([character])[0]
    )
    print(
        f"  {len(found):,} characters, {sum(count <= 3 for count in found.values()):,} of them at most "
        f"three times; {len(single):,} of {vocabulary.size:,} pieces are one character, {rare:,} of which "
        f"occur ten times at most; {unknown:,} of {found.total():,} characters of the text are unknown"
    )


def main(_: Sequence[str]) -> None:
    """Write the corpus, run, tell."""
    folder = Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "test.de").exists():
        start = time.perf_counter()
        write_corpus(folder, _PAIRS.value)
        print(f"{_PAIRS.value:,} pairs written in {(time.perf_counter() - start) / 60:.1f} minutes")
    name = f"run-{int(time.time())}"
    seconds = run(folder, name)
    describe(folder, name)
    if _KILL.value:
        killed = f"{name}-killed"
        (folder / killed / "data").mkdir(parents=True)
        for file in ("vocabulary.model", "data/vocabulary.json"):
            shutil.copy(folder / name / file, folder / killed / file)
        run(folder, killed, kill_after=seconds["tokenising"] / 2)
        run(folder, killed)


if __name__ == "__main__":
    run_command(main)
