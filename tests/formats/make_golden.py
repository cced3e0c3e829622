# SPDX-License-Identifier: Apache-2.0
"""Writes tests/formats/golden: small MarianMTModels, and what Hugging Face computes with them.

    python -m tests.formats.make_golden

It needs PyTorch and transformers (`pip install -e '.[test,interop]'`); test_golden.py, which compares
our numbers with the stored ones, needs neither. The folders that are in the repository were made with
torch 2.13.0 and transformers 5.24.0; each tells so itself, in outputs.json.

Beside the files of the model, which Hugging Face's own `save_pretrained` writes:

- outputs.json: the lines that were translated, their ids, and the tokens that greedy search (one beam)
  or beam search (four) made of them;
- outputs.npz: of the first lines, `memory` [B, S, D], the encoder's output, and `logits` [B, T, VOCAB],
  the decoder's, given the first lines of `targets`.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from tests.formats.peers import (
    TARGET,
    describe,
    random_arrays,
    sentences,
    their_tokens,
    write_vocabulary,
)

FOLDER = Path(__file__).parent / "golden"

# Sizes that no other size could be taken for, and seeds whose translations are not all of one word.
# `eos`: see SIZES in test_huggingface.py. So the first model's translations end at their limit, and many
# of the second's before; there, only greedy search is the same to the token in both.
MODELS = {
    "relu": {
        "sizes": {"d_model": 12, "d_ff": 19, "heads": 3, "layers": 2},
        "form": {"activation": "relu", "scaled": True},
        "weights": {"start": "zero", "eos": -8.0},
        "seed": 29,
        "beams": 4,
    },
    "swish": {
        "sizes": {"d_model": 14, "d_ff": 23, "heads": 7, "layers": 1},
        "form": {"activation": "swish", "scaled": False},
        "weights": {"start": "pad", "eos": 4.0},
        "seed": 5,
        "beams": 1,
    },
}
LINES = 20  # that are translated
LONGEST = 16  # tokens of one, so that our search compiles for one shape
FORCED = 2  # of them, whose logits are kept


def write_model(folder: Path, *, sizes: dict, form: dict, weights: dict, seed: int):
    """A random model in Hugging Face's hands, saved by it; the model and its tokenizer."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as temporary:
        vocabulary = write_vocabulary(Path(temporary), sizes=(60, 70))
        tokenizer = transformers.MarianTokenizer(
            *(str(Path(temporary) / name) for name in ("source.spm", "target.spm", "vocab.json")),
            source_lang="eng",
            target_lang="deu",
        )
        tokenizer.save_pretrained(folder)
    described = describe(vocabulary, **sizes, **form)
    model = transformers.MarianMTModel(transformers.MarianConfig(**described)).eval()
    arrays = {
        name: torch.from_numpy(array)
        for name, array in random_arrays(described, seed, **weights).items()
    }
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    assert not unexpected, unexpected
    assert all("embed_" in name or name == "lm_head.weight" for name in missing), missing
    model.tie_weights()
    # As Opus-MT's generation_config.json; `describe` says the same as older folders' config.json does.
    model.generation_config.bad_words_ids = described["bad_words_ids"]
    model.generation_config.num_beams = described["num_beams"]
    model.save_pretrained(folder)
    return model, tokenizer


def outputs_of(model, tokenizer, beams: int) -> tuple[dict, dict[str, np.ndarray]]:
    """What outputs.json and outputs.npz hold of this model."""
    import torch
    import transformers

    lines = [line for line in sentences(200) if len(tokenizer(line).input_ids) <= LONGEST][:LINES]
    targets = sentences(FORCED, seed=5, words=TARGET)
    inputs = tokenizer(lines[:FORCED], return_tensors="pt", padding=True)
    labels = tokenizer(text_target=targets, return_tensors="pt", padding=True).input_ids
    with torch.no_grad():
        forced = model(**inputs, labels=labels)
    told = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lines": lines,
        "targets": targets,
        "ids": tokenizer(lines).input_ids,
        "target_ids": tokenizer(text_target=targets).input_ids,
        "beams": beams,
        "tokens": their_tokens(model, tokenizer, lines, beams),
    }
    arrays = {"memory": forced.encoder_last_hidden_state, "logits": forced.logits}
    return told, {name: array.numpy() for name, array in arrays.items()}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, options in MODELS.items():
        beams = options["beams"]
        of_model = {key: value for key, value in options.items() if key != "beams"}
        model, tokenizer = write_model(FOLDER / name, **of_model)
        told, arrays = outputs_of(model, tokenizer, beams)
        (FOLDER / name / "outputs.json").write_text(
            json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        np.savez_compressed(FOLDER / name / "outputs.npz", **arrays)


if __name__ == "__main__":
    main()
