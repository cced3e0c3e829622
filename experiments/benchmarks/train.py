# SPDX-License-Identifier: Apache-2.0
"""Training speed against PyTorch: real source + target tokens per second, padding not counted.

    python -m experiments.benchmarks.train --path='multi30k/{split}.{lang}'
    python -m experiments.benchmarks.train --path=... --model=base --repeats=3

Needs the extra `benchmark`. Every contestant is a process of its own that has warmed up; they take
turns (A B C A B C ...), one computes while the others wait, so that a noisy machine is unfair to
none, and ratios are taken within a round. All train the same model in float32, with dropout, on the
same tokenised sentence pairs, each in batches of its own making of the same token budget.
"""

import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from experiments.benchmarks.report import describe_machine, save, summary, table
from experiments.benchmarks.turns import Worker, take_turns
from transformer_jax import errors

_PATH = flags.DEFINE_string("path", None, "Parallel text, such as 'multi30k/{split}.{lang}'.")
_MODEL = flags.DEFINE_enum("model", "tiny", ["tiny", "base"], "The model's sizes.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds that count.", lower_bound=1)
_TOKENS = flags.DEFINE_integer(
    "tokens", None, "Tokens of a turn; by default 160,000 (tiny) or 24,000 (base).", lower_bound=1
)
_CONTESTANTS = flags.DEFINE_list(
    "contestants",
    ["ours", "torch", "torch-tuned"],
    "Who takes part; there are also ours-onednn and torch-compiled. Ratios are to the first.",
)
_OUTPUT = flags.DEFINE_string(
    "output", "experiments/results/train_cpu.json", "Where the figures go, by model."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Tokenised data and logs.")
flags.mark_flag_as_required("path")

# glibc's allocator, made to keep what PyTorch frees instead of handing it back to the kernel.
_TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
# XLA's products from oneDNN, which jaxlib has for x86; JAX cannot keep such programs in its cache.
_ONEDNN = {
    "XLA_FLAGS": "--xla_cpu_use_onednn=true "
    "--xla_cpu_experimental_onednn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
_KINDS = {
    "ours": {},
    "ours-onednn": _ONEDNN,
    "torch": {},
    "torch-tuned": _TUNED,
    "torch-compiled": _TUNED,
}
_TURN_TOKENS = {"tiny": 160_000, "base": 24_000}


def main(_: Sequence[str]) -> None:
    """Prepare the data, let the contestants take turns, print and save what they did."""
    unknown = sorted(set(_CONTESTANTS.value) - set(_KINDS))
    if unknown:
        raise errors.UserError(
            f"--contestants: {unknown[0]!r} is not one of {', '.join(sorted(_KINDS))}"
        )
    if (
        importlib.util.find_spec("torch") is None
        or importlib.util.find_spec("transformers") is None
    ):
        raise errors.UserError(
            "PyTorch and transformers are missing: pip install -e '.[benchmark]'"
        )
    folder = Path(_WORKDIR.value).absolute()
    config = prepare_data(_MODEL.value, _PATH.value, folder)
    machine = describe_machine()
    workers: list[Worker] = []
    try:
        for name in _CONTESTANTS.value:
            workers.append(Worker(name, folder, config, _KINDS[name]))
        tokens = _TOKENS.value or _TURN_TOKENS[_MODEL.value]
        laps = take_turns(workers, rounds=_REPEATS.value, amount=tokens)
    finally:
        for worker in workers:
            worker.close()
    versions = {key: value for worker in workers for key, value in worker.versions.items()}
    command = shlex.join(["python", "-m", "experiments.benchmarks.train", *sys.argv[1:]])
    result = summary(laps) | {"command": command, "machine": machine, "versions": versions}
    key = _MODEL.value
    if flags.FLAGS["contestants"].present:  # figures of their own, beside those of the usual ones
        key += f", {' and '.join(_CONTESTANTS.value)}"
    save(
        Path(_OUTPUT.value),
        key,
        result,
        title="Training speed, real tokens per second",
        table=table,
    )
    print(table(key, result))


def prepare_data(model: str, path: str, folder: Path) -> Path:
    """Tokenise the training pairs once, for all contestants; the path of the model's config."""
    from configs import base, multi30k  # after the flags: --help need not wait for JAX
    from transformer_jax.config import resolve
    from transformer_jax.data.pipeline import prepare

    data = multi30k.get_config().data
    data.path = path
    data.splits = {"train": "train", "validation": "", "test": ""}
    wanted = multi30k.get_config() if model == "tiny" else base.get_config()
    sizes = resolve(wanted).model
    wanted.data = data
    wanted.train.logits_chunk = 512  # on a CPU the fastest: experiments/README.md
    # A corpus this small cannot fill base's vocabulary: its embedding and its softmax have their
    # full width, and the text uses some of it.
    run = dataclasses.replace(resolve(wanted), model=sizes)
    dataset = prepare(run, folder)
    pairs = folder / "pairs.npz"
    sides = [side for pair in dataset.train.read(range(len(dataset.train))) for side in pair]
    np.savez(pairs, ids=np.concatenate(sides), lengths=np.array([len(side) for side in sides]))
    config = folder / f"{model}.json"
    config.write_text(run.to_json(), encoding="utf-8")
    return config


if __name__ == "__main__":
    errors.run_command(main)
