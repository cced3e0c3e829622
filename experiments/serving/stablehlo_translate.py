# SPDX-License-Identifier: Apache-2.0
"""Translate greedily with a folder of `convert --to=stablehlo`: JAX, NumPy and sentencepiece, no model code.

    python -m transformer_jax.convert --to=stablehlo --workdir=runs/demo --output=demo-stablehlo
    echo 'My old friend has twenty-one books.' | python experiments/serving/stablehlo_translate.py demo-stablehlo

The file can be copied to where it is needed: it imports nothing of transformer_jax.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece


class ExportedModel:
    """The encoder, the decoder's step, their weights and the vocabulary of one folder."""

    def __init__(self, folder: str | Path):
        """Read everything; the first call compiles."""
        folder = Path(folder)
        self.about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.encode, self.decode_step = (
            jax.jit(jax.export.deserialize((folder / f"{name}.jax_export").read_bytes()).call)
            for name in ("encode", "decode_step")
        )
        self.weights = {
            name: jnp.asarray(of) for name, of in np.load(folder / "weights.npz").items()
        }
        self.source, self.target = (
            sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
            for name in ("source.spm", "target.spm")
        )
        self.pieces = json.loads((folder / "pieces.json").read_text(encoding="utf-8"))
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}

    def translate(self, lines: list[str]) -> list[str]:
        """The most probable token at every position, until that is EOS; one line for every line."""
        eos, unknown, most = (self.about[name] for name in ("eos", "unknown", "max_length"))
        pieces = [self.source.encode(line.strip(), out_type=str)[: most - 1] for line in lines]
        sentences = [[*(self.ids.get(piece, unknown) for piece in of), eos] for of in pieces]
        lengths = np.array([len(ids) for ids in sentences], np.int32)
        rows = np.full((len(lines), lengths.max()), self.about["pad"], np.int32)
        for row, ids in zip(rows, sentences, strict=True):
            row[: len(ids)] = ids
        tokens = self.greedy(rows, lengths)
        return [
            self._text(row) if len(ids) > 1 else ""
            for row, ids in zip(tokens, sentences, strict=True)
        ]

    def greedy(self, source: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The tokens [B, L] of the translations: up to and with EOS, then EOS again."""
        about = self.about
        limits = lengths + about["extra_length"]
        cross = self.encode(self.weights, source, lengths)
        shape = (len(source), 1, about["num_heads"], int(limits.max()))
        cache = [
            tuple(jnp.zeros((*shape, about[size]), about["dtype"]) for size in ("d_k", "d_v"))
            for _ in range(about["num_layers"])
        ]
        last, tokens = np.full((len(source), 1), about["pad"], np.int32), []
        done = np.zeros(len(source), bool)
        for position in range(shape[3]):
            logits, cache = self.decode_step(
                self.weights, last, np.int32(position), cache, cross, lengths
            )
            logits = np.array(logits[:, 0])
            logits[:, about["pad"]] = -np.inf
            best = logits.argmax(axis=-1)
            tokens.append(np.where(done | (position + 1 >= limits), about["eos"], best))
            done |= tokens[-1] == about["eos"]
            if done.all():
                break
            last = tokens[-1].astype(np.int32)[:, None]
        return np.stack(tokens, axis=1)

    def _text(self, tokens: np.ndarray) -> str:
        words = [self.pieces[token] for token in tokens[: list(tokens).index(self.about["eos"])]]
        return self.target.decode_pieces(words).replace("\u2581", " ").strip()


if __name__ == "__main__":
    model = ExportedModel(sys.argv[1])
    for line in sys.stdin:
        print(model.translate([line])[0], flush=True)
