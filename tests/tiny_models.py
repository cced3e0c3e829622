# SPDX-License-Identifier: Apache-2.0
"""Random models that are large enough to have opinions: what a search chooses among differs."""

from pathlib import Path

import jax
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.data.vocabulary import Vocabulary, train_vocabulary
from transformer_jax.model.transformer import Transformer

WORDS = ["ein", "Hund", "läuft", "durch", "den", "Park", "zwei", "Männer", "dog", "runs", "the"]
SENTENCES = [
    " ".join(WORDS[(start + step * place) % len(WORDS)] for place in range(size))
    for start in range(len(WORDS))
    for step in (1, 3, 7)
    for size in (2, 5, 9)
]


def tiny_vocabulary(path: Path) -> Vocabulary:
    """64 pieces, fewer than there are words and characters together."""
    return train_vocabulary(SENTENCES, size=64, kind="bpe", path=path)


def tiny_model(vocabulary: Vocabulary, seed: int = 0, **options) -> Transformer:
    """Two layers with weights twice as large as usual."""
    sizes = {"num_layers": 2, "d_model": 24, "d_ff": 40, "num_heads": 2, "d_k": 6, "d_v": 10}
    config = ModelConfig(vocab_size=vocabulary.size, max_length=24, **(sizes | options))
    model = Transformer(config, rngs=nnx.Rngs(seed))
    structure, params = nnx.split(model)
    return nnx.merge(structure, jax.tree.map(lambda leaf: 2.0 * leaf, params))
