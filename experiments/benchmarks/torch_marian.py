# SPDX-License-Identifier: Apache-2.0
"""The peer: a plain PyTorch training loop over Hugging Face's MarianMTModel.

Written as its users would who care for speed: length-sorted batches of a token budget, scaled
dot-product attention, fused Adam, one thread a core. Imports neither JAX nor transformer_jax.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from experiments.benchmarks.worker import Lap

_PAD, _IGNORED = 0, -100  # token id; label that has no loss
_GOLDEN = 0.6180339887  # its multiples, modulo 1, are spread most evenly, however many


class TorchMarian:
    """The same sizes as ours, on the same sentence pairs; state that laps go on with."""

    def __init__(self, folder: Path, config: dict[str, Any], *, compiled: bool = False):
        """A fresh model; `folder` has the tokenised pairs, `config` is our config.json."""
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(config["train"]["seed"])
        self._smoothing = config["train"]["label_smoothing"]
        self._model = make_model(config["model"]).train()
        optimizer = config["optimizer"]
        # The schedule's rate is the factor's, so that the optimizer's own is 1.
        self._optimizer = torch.optim.Adam(
            self._model.parameters(),
            lr=1.0,
            betas=(optimizer["beta1"], optimizer["beta2"]),
            eps=optimizer["epsilon"],
            fused=True,
        )
        warmup = optimizer["warmup_steps"]
        peak = optimizer["peak_rate"] or (config["model"]["d_model"] * warmup) ** -0.5
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: peak * min(((step + 1) / warmup) ** -0.5, (step + 1) / warmup),
        )
        self._forward = torch.compile(self._model, dynamic=True) if compiled else self._model
        pairs = load_pairs(folder / "pairs.npz")
        self._batches = endless_batches(pairs, config["data"]["batch_tokens"], seed=0)

    def versions(self) -> dict[str, str]:
        """What this contestant is made of."""
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def lap(self, tokens: int) -> Lap:
        """Train until at least so many real tokens are seen."""
        lap = Lap()
        while lap.tokens < tokens:
            source, target = next(self._batches)
            loss = self._step(source, target)
            real = int((target != _PAD).sum())
            lap.add(
                tokens=int((source != _PAD).sum()) + real,
                positions=source.numel() + target.numel(),
                target_tokens=real,
                loss=loss * real,
            )
        return lap

    def _step(self, source: torch.Tensor, target: torch.Tensor) -> float:
        labels = target.masked_fill(target == _PAD, _IGNORED)
        logits = self._forward(
            input_ids=source,
            attention_mask=source != _PAD,
            decoder_input_ids=functional.pad(target[:, :-1], (1, 0), value=_PAD),
        ).logits
        loss = functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=_IGNORED,
            label_smoothing=self._smoothing,
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.item()


def make_model(sizes: dict[str, Any]) -> transformers.MarianMTModel:
    """Post-norm, sinusoidal positions and one shared embedding are Marian's own ways."""
    assert (
        sizes["d_k"] * sizes["num_heads"] == sizes["d_v"] * sizes["num_heads"] == sizes["d_model"]
    )
    config = transformers.MarianConfig(
        vocab_size=sizes["vocab_size"],
        max_position_embeddings=sizes["max_length"],
        encoder_layers=sizes["num_layers"],
        decoder_layers=sizes["num_layers"],
        encoder_attention_heads=sizes["num_heads"],
        decoder_attention_heads=sizes["num_heads"],
        encoder_ffn_dim=sizes["d_ff"],
        decoder_ffn_dim=sizes["d_ff"],
        d_model=sizes["d_model"],
        activation_function=sizes["activation"],
        dropout=sizes["dropout"],
        attention_dropout=sizes["attention_dropout"],
        activation_dropout=sizes["activation_dropout"],
        init_std=sizes["d_model"] ** -0.5,
        scale_embedding=True,
        pad_token_id=_PAD,
        decoder_start_token_id=_PAD,
        eos_token_id=1,
        forced_eos_token_id=1,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return transformers.MarianMTModel(config)


Pair = tuple[np.ndarray, np.ndarray]


def load_pairs(path: Path) -> list[Pair]:
    """(source ids, target ids), both closed by EOS, in the corpus's order."""
    with np.load(path) as arrays:
        ids, lengths = arrays["ids"].astype(np.int64), arrays["lengths"]
    sides = np.split(ids, np.cumsum(lengths)[:-1])
    return list(zip(sides[::2], sides[1::2], strict=True))


def endless_batches(
    pairs: list[Pair], batch_tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded (source [B, S], target [B, T]), epoch after epoch.

    Consecutive batches have lengths from everywhere, so that turns are alike: in a random order, the
    few batches of a turn differ by 10 % in their padding from one turn to the next.
    """
    rng = np.random.default_rng(seed)
    while True:
        batches = sorted_batches(pairs, batch_tokens, rng)
        spread = (rng.random() + _GOLDEN * np.arange(len(batches))) % 1.0
        for number in np.argsort(np.argsort(spread)):  # the rank of each
            chosen = [pairs[index] for index in batches[number]]
            yield _padded([source for source, _ in chosen]), _padded([to for _, to in chosen])


def sorted_batches(
    pairs: list[Pair], batch_tokens: int, rng: np.random.Generator
) -> list[list[int]]:
    """Neighbours in length, as many as two padded sides of `batch_tokens` on average hold."""
    order = rng.permutation(len(pairs)).tolist()  # which of the equally long ones come together
    # Of the usual orders the one with the least padding: 95 % of the positions are real, and 93 %
    # when sorted by (source, target).
    order.sort(key=lambda index: (max(map(len, pairs[index])), len(pairs[index][0])))
    batches: list[list[int]] = [[]]
    source = target = 0
    for index in order:
        source = max(source, len(pairs[index][0]))
        target = max(target, len(pairs[index][1]))
        if batches[-1] and (len(batches[-1]) + 1) * (source + target) > 2 * batch_tokens:
            batches.append([])
            source, target = len(pairs[index][0]), len(pairs[index][1])
        batches[-1].append(index)
    return batches


def _padded(sentences: list[np.ndarray]) -> torch.Tensor:
    tensors = [torch.from_numpy(sentence) for sentence in sentences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=_PAD)
