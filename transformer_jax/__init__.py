# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017) in JAX and Flax NNX.

To use a trained model:

    from transformer_jax import SearchOptions, Translator

    translator = Translator.from_workdir("runs/demo")
    translator.translate(["The young friend knows the neighbour."])              # list of str
    translator.search(["An old friend."], SearchOptions(n_best=4, scores=True))  # lists of Hypothesis
    translator.score(["An old friend."], ["Ein alter Freund."])                  # list of Hypothesis

Of one's own model: Translator(model, Vocabulary.load(path), DecodeConfig(), max_length).

To build on its parts, with B rows, S source and T target tokens, D features, W hypotheses a row:

    TransformerConfig(num_layers=6, d_model=512, ...)    all sizes and choices; the paper's by default
    Transformer(config, rngs=nnx.Rngs(0))
        model(Batch(source, target, rows))               -> logits [B, T, VOCAB]
        model.hidden(batch, rng=...)                     -> [B, T, D], which model.logits projects
        model.encode(source)                             -> [B, S, D]
        model.decode(target, memory, source.segments)    -> [B, T, D]
        model.decode_step(ids, position, cache, cross, source.segments)
                                                         -> logits [B, W, VOCAB], cache
    Tokens.of(ids)                                       rows of ids [B, S], 0 behind their ends
    DropoutRng.of_step(seed, step, batch.rows)           a step's dropout, for rng= of any call
    Encoder(config, rngs=...)(x, segments)               [B, S, D] -> [B, S, D]
    Decoder(config, rngs=...)(x, memory, segments, source_segments)
                                                         [B, T, D], [B, S, D] -> [B, T, D]
    MultiHeadAttention(config, dtype, rngs=...)(x, memory, segments, memory_segments)
                                                         [B, T, D], [B, S, D] -> [B, T, D]
    beam_search(step, cache, beam_size=W, max_lengths=..., length=L)
                                                         -> BeamResult, ids [B, W, L], best first
    sample(step, cache, keys=..., samples=W, max_lengths=..., length=L)
                                                         -> BeamResult, in the order of drawing

Dropout is in the calls that are given an `rng`; without one a model evaluates, and a gradient of it is
refused where its config has dropout. model.train() makes a call without rng an error, too, and
model.eval() allows such gradients. One seed is one mask, the same in every call: of_step makes each
step's, and the layers fold in their numbers. rng.fold_in(7), or attention_kernels.fold_in(seed, 7) of a
seed, makes another, of a second pass in the same step, say.

`beam_search` and `sample` take any function step(ids [B, W], position, cache) -> (logits [B, W, VOCAB],
cache), of a model of this package or of another. The docstrings have the rest.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_jax.config import DecodeConfig
    from transformer_jax.config import ModelConfig as TransformerConfig
    from transformer_jax.data.batch import Batch, Tokens
    from transformer_jax.data.vocabulary import Vocabulary
    from transformer_jax.errors import UserError
    from transformer_jax.inference.beam_search import BeamResult, beam_search, length_penalty
    from transformer_jax.inference.ensemble import Ensemble
    from transformer_jax.inference.hypotheses import Hypothesis, SearchOptions
    from transformer_jax.inference.sampling import Sampling, line_keys, sample
    from transformer_jax.inference.translator import Translator
    from transformer_jax.model.attention import MultiHeadAttention
    from transformer_jax.model.dropout import DropoutRng
    from transformer_jax.model.transformer import Decoder, Encoder, Transformer

# Each is imported when it is used, so that a config or --help need not wait for JAX.
_HOMES = {
    "Batch": "data.batch",
    "BeamResult": "inference.beam_search",
    "DecodeConfig": "config",
    "Decoder": "model.transformer",
    "DropoutRng": "model.dropout",
    "Encoder": "model.transformer",
    "Ensemble": "inference.ensemble",
    "Hypothesis": "inference.hypotheses",
    "MultiHeadAttention": "model.attention",
    "Sampling": "inference.sampling",
    "SearchOptions": "inference.hypotheses",
    "Tokens": "data.batch",
    "Transformer": "model.transformer",
    "TransformerConfig": "config",
    "Translator": "inference.translator",
    "UserError": "errors",
    "Vocabulary": "data.vocabulary",
    "beam_search": "inference.beam_search",
    "length_penalty": "inference.beam_search",
    "line_keys": "inference.sampling",
    "sample": "inference.sampling",
}

__all__ = [
    "Batch",
    "BeamResult",
    "DecodeConfig",
    "Decoder",
    "DropoutRng",
    "Encoder",
    "Ensemble",
    "Hypothesis",
    "MultiHeadAttention",
    "Sampling",
    "SearchOptions",
    "Tokens",
    "Transformer",
    "TransformerConfig",
    "Translator",
    "UserError",
    "Vocabulary",
    "beam_search",
    "length_penalty",
    "line_keys",
    "sample",
]


if not TYPE_CHECKING:  # to a type checker it would make a name of every misspelling

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        return getattr(home, "ModelConfig" if name == "TransformerConfig" else name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The wheel has a copy of attention_kernels, for where that is not installed by itself. Its .pth file leads
# there, but Python reads those of site-packages only, not of folders such as pip install --target makes.
_BUNDLED = Path(__file__).parent / "_bundled"
if _BUNDLED.is_dir() and str(_BUNDLED) not in sys.path:
    sys.path.append(str(_BUNDLED))
