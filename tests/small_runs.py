# SPDX-License-Identifier: Apache-2.0
"""A corpus that is learned in seconds, and a config of a run on it."""

import random
from pathlib import Path

import ml_collections

from transformer_jax.config import default_config


def write_corpus(folder: Path, sizes=(400, 40, 30)) -> str:
    """A language whose German is its English backwards, in other letters; returns the template."""
    rng = random.Random(0)
    english = [f"{a}{b}" for a in "bdfgklm" for b in ("at", "ip", "un")]
    german = {word: word[::-1].upper() for word in english}
    folder.mkdir(exist_ok=True)
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        lines = [[rng.choice(english) for _ in range(rng.randint(2, 7))] for _ in range(size)]
        text = {
            "en": [" ".join(words) for words in lines],
            "de": [" ".join(german[word] for word in reversed(words)) for words in lines],
        }
        for language, sentences in text.items():
            path = folder / f"{split}.{language}"
            path.write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    return str(folder / "{split}.{lang}")


def tiny(template: str) -> ml_collections.ConfigDict:
    config = default_config()
    config.model.num_layers = 1
    config.model.d_model = config.model.d_ff = 16
    config.model.num_heads = 2
    config.model.d_k = config.model.d_v = 8
    config.data.path = template
    config.data.vocab_size = 60
    config.data.max_length = 32
    config.data.batch_tokens = 512
    config.train.num_steps = 6
    config.train.log_every = 2
    config.train.eval_every = 3
    config.train.checkpoint_every = 2
    config.train.keep = 2
    return config
