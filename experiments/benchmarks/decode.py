# SPDX-License-Identifier: Apache-2.0
"""Translation speed against Hugging Face generate and CTranslate2: sentences and tokens per second.

    python -m experiments.benchmarks.decode --path='multi30k/{split}.{lang}'
    python -m experiments.benchmarks.decode --path=... --models=base --beams=4 --rounds=3

Needs the extra `benchmark`. Every contestant is a process of its own that has warmed up; they take
turns (A B C A B C ...), one computes while the others wait, so that a noisy machine is unfair to
none, and ratios are taken within a round. All translate the same sentences in the same batches with
random weights of the same sizes; hypotheses are forced to the same length, and token ids go in and
out. What the first call takes, with compilation, is told apart.
"""

import importlib.util
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks.report import describe_machine, save, spread, summary
from experiments.benchmarks.turns import Worker, take_turns
from transformer_jax import errors

_PATH = flags.DEFINE_string("path", None, "Parallel text, such as 'multi30k/{split}.{lang}'.")
_SPLIT = flags.DEFINE_string("split", "test_2016_flickr", "Its English is translated.")
_MODELS = flags.DEFINE_list("models", ["tiny", "base"], "The models' sizes.")
_BEAMS = flags.DEFINE_list("beams", ["4", "1"], "Beam sizes; 1 is greedy search.")
_BATCH = flags.DEFINE_integer("batch", 64, "Sentences of a batch.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 20, "Tokens of every translation.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds that count.", lower_bound=1)
_SENTENCES = flags.DEFINE_integer(
    "sentences",
    1_000,
    "Of a turn: all lengths, so that the first meets every shape.",
    lower_bound=1,
)
_VOCABULARY = flags.DEFINE_integer("vocabulary", 8_000, "Entries of the vocabulary.")
_CONTESTANTS = flags.DEFINE_list(
    "contestants",
    [
        "ours-float32",
        "ctranslate2-float32",
        "ours-int16",
        "ours-int8",
        "ctranslate2-int8",
        "huggingface-float32",
    ],
    "Who takes part, and in what precision they multiply. Ratios are to the first.",
)
_OUTPUT = flags.DEFINE_string(
    "output", "experiments/results/decode_cpu.json", "Where the figures go, by model and beam."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark-decode", "Models and logs.")
flags.mark_flag_as_required("path")

_KINDS = ("ours", "huggingface", "ctranslate2")
_SIZES = ("tiny", "base")


def main(_: Sequence[str]) -> None:
    """Prepare models and text, let the contestants take turns, print and save what they did."""
    check_flags()
    for model in _MODELS.value:
        folder = Path(_WORKDIR.value).absolute() / model
        sizes = prepare(model, folder)
        for beam in map(int, _BEAMS.value):
            result = compete(folder, sizes, beam, _SENTENCES.value)
            key = f"{model}, {f'beam {beam}' if beam > 1 else 'greedy'}"
            save(Path(_OUTPUT.value), key, result, title="Translation speed", table=table)
            print(table(key, result), flush=True)


def check_flags() -> None:
    """Raises: UserError if they name what there is not."""
    kinds = {name.partition("-")[0] for name in _CONTESTANTS.value}
    if unknown := sorted(kinds - set(_KINDS)):
        raise errors.UserError(
            f"--contestants: {unknown[0]!r} is not one of {', '.join(sorted(_KINDS))}"
        )
    if unknown := sorted(set(_MODELS.value) - set(_SIZES)):
        raise errors.UserError(f"--models: {unknown[0]!r} is not tiny or base")
    for module in ("torch", "transformers", "ctranslate2"):
        if importlib.util.find_spec(module) is None:
            raise errors.UserError(f"{module} is missing: pip install -e '.[benchmark]'")


def prepare(model: str, folder: Path) -> dict[str, Any]:
    """Sources as token ids and the peers' models in `folder`; the model's sizes."""
    from configs import base, multi30k  # after the flags: --help need not wait for JAX
    from experiments.benchmarks.decoders import write_peers
    from transformer_jax.config import resolve
    from transformer_jax.data.vocabulary import train_vocabulary

    folder.mkdir(parents=True, exist_ok=True)
    config = (multi30k if model == "tiny" else base).get_config()
    config.data.vocab_size = _VOCABULARY.value
    sizes = json.loads(resolve(config).to_json())["model"]

    def lines(split: str, lang: str) -> list[str]:
        path = Path(_PATH.value.format(split=split, lang=lang))
        if not path.exists():
            raise errors.UserError(f"--path: there is no {path}")
        return path.read_text(encoding="utf-8").splitlines()

    texts = lines("train", "en") + lines("train", "de")
    vocabulary = train_vocabulary(
        texts, size=_VOCABULARY.value, kind="bpe", path=folder / "vocabulary.model"
    )
    sources = vocabulary.encode(lines(_SPLIT.value, "en"))
    np.savez(
        folder / "sources.npz",
        ids=np.concatenate(sources),
        lengths=np.array([len(ids) for ids in sources]),
    )
    write_peers(folder, sizes)
    return sizes


def compete(folder: Path, sizes: dict[str, Any], beam: int, sentences: int) -> dict[str, Any]:
    """The contestants' first calls, then their turns."""
    config = folder / f"beam{beam}.json"
    settings = {"beam": beam, "length": _LENGTH.value, "batch": _BATCH.value}
    config.write_text(json.dumps({"model": sizes} | settings), encoding="utf-8")
    machine = describe_machine()
    workers: list[Worker] = []
    first: dict[str, Any] = {}
    # An empty compilation cache for the first start of ours; the second finds it filled.
    cache = folder / f"cache{beam}"
    for file in cache.glob("**/*"):
        if file.is_file():
            file.unlink()
    try:
        for name in _CONTESTANTS.value:
            starts = []
            for _ in range(2):
                worker = Worker(
                    name,
                    folder,
                    config,
                    {"XDG_CACHE_HOME": str(cache)},
                    module="experiments.benchmarks.decoders",
                )
                try:
                    seconds = worker.lap(_BATCH.value)["seconds"]
                except BaseException:
                    worker.close()
                    raise
                starts.append({"start": worker.start_seconds, "first_batch": seconds})
                if len(starts) == 1:
                    worker.close()
            first[name] = starts
            workers.append(worker)
        laps = take_turns(workers, rounds=_ROUNDS.value, amount=sentences)
    finally:
        for worker in workers:
            worker.close()
    speeds = {
        name: spread([lap["sentences_per_second"] for lap in of]) for name, of in laps.items()
    }
    versions = {key: value for worker in workers for key, value in worker.versions.items()}
    command = shlex.join(["python", "-m", "experiments.benchmarks.decode", *sys.argv[1:]])
    facts = {"command": command, "machine": machine, "versions": versions, "settings": settings}
    return summary(laps) | {"sentences_per_second": speeds, "first_call": first} | facts


def table(key: str, result: dict[str, Any]) -> str:
    """The result as Markdown."""
    laps = result["laps"]
    first = next(iter(laps))
    machine, settings = result["machine"], result["settings"]
    firsts = [lap["sentences_per_second"] for lap in laps[first]]
    rows = [
        f"## {key}",
        "",
        f"`{result['command']}`",
        "",
        f"{machine['cores']} cores of {machine['cpu']}, "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + f", commit {machine['commit']}, {machine['date'][:10]}; batches of {settings['batch']}, "
        f"{settings['length']} tokens each; medians (min to max) of {len(laps[first])} rounds",
        "",
        f"| | sentences/s | tokens/s | its speed over that of {first} | sentences per core second "
        "| first start, s | first batch, s | second start, s | first batch, s | memory, GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, of in laps.items():
        speed, tokens = result["sentences_per_second"][name], result["tokens_per_second"][name]
        theirs = [lap["sentences_per_second"] for lap in of]
        ratio = spread([its / ours for its, ours in zip(theirs, firsts, strict=True)])
        busy = statistics.median(
            lap["sentences"] / (lap["seconds"] * lap["cores_used"]) for lap in of
        )
        starts = [
            f"{start[key]:.1f}"
            for start in result["first_call"][name]
            for key in ("start", "first_batch")
        ]
        rows.append(
            f"| {name} | {speed['median']:,.1f} ({speed['min']:,.1f} to {speed['max']:,.1f}) "
            f"| {tokens['median']:,.0f} | "
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {busy:,.1f} "
            f"| {' | '.join(starts)} | {of[-1]['peak_memory_gb']:.1f} |"
        )
    waiting = max(lap["cores_used_by_waiting"] for of in laps.values() for lap in of)
    others = max(lap["cores_used_by_others"] for of in laps.values() for lap in of)
    noise = f"Waiting contestants used at most {waiting:.2f} cores, other programs {others:.2f}."
    return "\n".join([*rows, "", noise])


if __name__ == "__main__":
    errors.run_command(main)
