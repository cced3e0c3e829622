# SPDX-License-Identifier: Apache-2.0
"""MarianMTModel folders with random weights and a real vocabulary, for tests beside Hugging Face.

And what both make of a line: `their_tokens` needs PyTorch and transformers, `our_tokens` neither.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.batch import EOS
from transformer_jax.data.vocabulary import train_vocabulary
from transformer_jax.formats import safetensors
from transformer_jax.inference.hypotheses import SearchOptions
from transformer_jax.inference.translator import Translator

EXTRA = 6  # a translation has at most the source's tokens and so many more


def _words(syllables: str, seed: int) -> list[str]:
    """Two hundred words that no language has, of one to three syllables."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, 200)
    return ["".join(rng.choice(syllables.split(), count)) for count in counts]


SOURCE = _words("the old dog ran fast by red hill and saw a big cat no one fed", seed=1)
TARGET = _words("der alte hund lief schnell am roten huegel und sah die katze oft ß ü", seed=2)


def sentences(count: int, seed: int = 0, words: list[str] = SOURCE) -> list[str]:
    """Distinct lines of 1 to 12 words."""
    rng = np.random.default_rng(seed)
    lines: dict[str, None] = {}
    while len(lines) < count:
        lines[" ".join(rng.choice(words, int(rng.integers(1, 13))))] = None
    return list(lines)


def write_vocabulary(folder: Path, sizes: tuple[int, int] = (150, 180)) -> int:
    """source.spm, target.spm and vocab.json as Opus-MT has them; returns the number of pieces.

    `sizes`: how many pieces each side has.
    """
    pieces: dict[str, None] = {}
    for name, words, size in zip(("source", "target"), (SOURCE, TARGET), sizes, strict=True):
        vocabulary = train_vocabulary(
            sentences(500, words=words), size=size, kind="bpe", path=folder / f"{name}.spm"
        )
        pieces |= dict.fromkeys(vocabulary.pieces[3:])
    table = {"</s>": 0, "<unk>": 1}
    for piece in [*pieces, ">>deu<<", "<pad>"]:
        table[piece] = len(table)
    (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    return len(table)


def describe(
    vocabulary: int,
    *,
    d_model: int,
    d_ff: int,
    heads: int,
    layers: int,
    activation: str,
    scaled: bool,
) -> dict:
    """A config.json as MarianMTModel writes it."""
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "vocab_size": vocabulary,
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_ffn_dim": d_ff,
        "decoder_ffn_dim": d_ff,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "activation_function": activation,
        "scale_embedding": scaled,
        "max_position_embeddings": 128,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "eos_token_id": 0,
        "pad_token_id": vocabulary - 1,
        "decoder_start_token_id": vocabulary - 1,
        "forced_eos_token_id": 0,
        "bad_words_ids": [[vocabulary - 1]],
        "num_beams": 4,
    }


def random_arrays(
    described: dict, seed: int, *, start: str = "zero", eos: float = 1.0
) -> dict[str, np.ndarray]:
    """Weights in which every array is random, norms and biases too.

    Large enough that the best token stands out. `start`: what <pad>'s embedding is, "zero" or
    random. `eos`: added to the bias of </s>.
    """
    rng = np.random.default_rng(seed)
    size, d_model, d_ff = (described[name] for name in ("vocab_size", "d_model", "encoder_ffn_dim"))

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    arrays = {}
    table = normal(size, d_model, scale=(d_model**-0.5 if described["scale_embedding"] else 1.0))
    if start == "zero":
        table[-1] = 0.0
    arrays["model.shared.weight"] = table
    bias = normal(1, size)
    bias[0, 0] += eos
    arrays["final_logits_bias"] = bias
    for stack in ("encoder", "decoder"):
        for layer in range(described["encoder_layers"]):
            place = f"model.{stack}.layers.{layer}"
            blocks = ["self_attn"] + ["encoder_attn"] * (stack == "decoder")
            for block in blocks:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    name = f"{place}.{block}.{part}"
                    arrays[f"{name}.weight"] = normal(d_model, d_model, scale=2.0 * d_model**-0.5)
                    arrays[f"{name}.bias"] = normal(d_model, scale=0.2)
            arrays[f"{place}.fc1.weight"] = normal(d_ff, d_model, scale=2.0 * d_model**-0.5)
            arrays[f"{place}.fc1.bias"] = normal(d_ff, scale=0.2)
            arrays[f"{place}.fc2.weight"] = normal(d_model, d_ff, scale=2.0 * d_ff**-0.5)
            arrays[f"{place}.fc2.bias"] = normal(d_model, scale=0.2)
            for norm in [*(f"{block}_layer_norm" for block in blocks), "final_layer_norm"]:
                arrays[f"{place}.{norm}.weight"] = normal(d_model, scale=0.2, mean=1.0)
                arrays[f"{place}.{norm}.bias"] = normal(d_model, scale=0.2)
    # What the softmax reads: logits of a width at which the best of two tokens is not a matter of
    # rounding, and sentences end.
    last = f"model.decoder.layers.{described['encoder_layers'] - 1}.final_layer_norm"
    spread = 2.5 if described["scale_embedding"] else 2.5 * d_model**-0.5
    arrays[f"{last}.weight"] = arrays[f"{last}.weight"] * np.float32(spread)
    return arrays


def write_folder(
    folder: Path, seed: int = 0, *, start: str = "zero", eos: float = 1.0, **sizes
) -> dict:
    """A MarianMTModel's folder as Opus-MT has it; returns its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_vocabulary(folder)
    defaults = {"d_model": 32, "d_ff": 48, "heads": 4, "layers": 2, "activation": "swish"}
    described = describe(vocabulary, **{**defaults, "scaled": True, **sizes})
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    tokenizer = {"source_lang": "eng", "target_lang": "deu", "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    arrays = random_arrays(described, seed, start=start, eos=eos)
    safetensors.write(folder / "model.safetensors", arrays, {"format": "pt"})
    return described


def their_tokens(model: Any, tokenizer: Any, lines: list[str], beams: int) -> list[list[int]]:
    """The tokens that `generate` makes of each line, up to EOS, at most as many as we allow."""
    import torch  # here: most of who imports this module has none

    outputs: dict[str, list[int]] = {}
    by_length: dict[int, list[str]] = {}
    for line in lines:
        by_length.setdefault(len(tokenizer(line).input_ids), []).append(line)
    # It would make EOS certain at the limit, and so change which hypothesis of a beam is the best.
    model.generation_config.forced_eos_token_id = None
    for length, members in by_length.items():
        limit = length + EXTRA

        def only_eos_at_the_limit(ids, scores, limit=limit):
            # As ours: EOS keeps its probability there.
            if ids.shape[1] == limit:
                scores[:, 1:] = -torch.inf
            return scores

        with torch.no_grad():
            rows = model.generate(
                **tokenizer(members, return_tensors="pt"),
                max_length=limit + 1,  # with the token that the decoder starts from
                num_beams=beams,
                do_sample=False,
                length_penalty=0.0,
                logits_processor=[only_eos_at_the_limit],
            ).tolist()
        for line, ids in zip(members, rows, strict=True):
            outputs[line] = ids[1 : ids.index(0)]
    return [outputs[line] for line in lines]


def our_tokens(translator: Translator, lines: list[str], beam_size: int) -> list[list[int]]:
    """The same of our search, in the ids of vocab.json."""
    vocabulary = copy.copy(translator.vocabulary)
    vocabulary.decode = lambda rows: [" ".join(map(str, row)) for row in rows]
    spoken = copy.copy(translator)
    spoken.vocabulary = vocabulary
    outputs = []
    options = SearchOptions(beam_size=beam_size, alpha=0.0, min_length=0)  # as theirs
    for [hypothesis] in spoken.search(lines, options):
        ids = [int(token) for token in hypothesis.text.split()]
        outputs.append(vocabulary.marian_ids[ids[: ids.index(EOS)]].tolist())
    return outputs
