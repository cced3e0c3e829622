# SPDX-License-Identifier: Apache-2.0
"""MarianMTModel folders with random weights and a real vocabulary, for tests beside Hugging Face."""

import json
from pathlib import Path

import numpy as np

from transformer_jax.data.vocabulary import train_vocabulary
from transformer_jax.formats import safetensors


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


def write_vocabulary(folder: Path) -> int:
    """source.spm, target.spm and vocab.json as Opus-MT has them; returns the number of pieces."""
    pieces: dict[str, None] = {}
    for name, words, size in (("source", SOURCE, 150), ("target", TARGET, 180)):
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
