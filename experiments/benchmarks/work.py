# SPDX-License-Identifier: Apache-2.0
"""The useful work of what the GPU benchmarks run, counted by hand.

A compiler's own count is of what it was given: loop bodies once, kernels only if they say so, and work
that a mask makes useless like any other. A whole step's is in transformer_jax/flops.py.
"""

import numpy as np


def loss_flops(tokens: int, d_model: int, vocabulary: int) -> int:
    """Of the softmax's matrix product and its two gradients; nothing is computed twice."""
    return 3 * 2 * tokens * d_model * vocabulary


def visible_pairs(segments: np.ndarray, causal: bool) -> int:
    """How many (query, key) a batch's self-attention looks at, of segments [B, T].

    A sentence of n tokens has n^2, and with `causal` n (n + 1) / 2; padding (segment 0) has none.
    Assumes that a sentence's tokens stand together.
    """
    pairs = 0
    for row in segments:
        _, sizes = np.unique(row[row > 0], return_counts=True)
        sizes = sizes.astype(np.int64)
        pairs += int(np.sum(sizes * (sizes + 1) // 2 if causal else sizes * sizes))
    return pairs


def attention_flops(pairs: int, heads: int, features: int, backward: bool) -> int:
    """Of attention with K = V = `features`, masked-out pairs not counted.

    Forward has two products (scores, output). Backward has five, of which one makes the scores again,
    as FlashAttention's authors count: 3.5 times forward in all.
    """
    products = 2 + 5 * backward
    return 2 * products * pairs * heads * features


def attention_bytes(positions: int, heads: int, features: int, backward: bool) -> int:
    """What must move through the device's memory in bfloat16, with T = S and K = V = `features`.

    Forward reads three arrays of `positions` vectors and writes one; backward reads five (the output
    and its gradient too) and writes three. Log-sum-exp and segments are left out: 3 % more.
    """
    arrays = 4 + 8 * backward
    return 2 * arrays * positions * heads * features


def segments_of(kind: str, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Segments [B, T] int32 of a batch.

    "full": one sentence a row, of the row's length. "padded": one sentence a row, its length uniform
    from 3/4 of the row's. "packed": sentences of 1/8 to 1/2 of the row, the last cut short, and 1/32
    of the row is padding.
    """
    rng = np.random.default_rng(seed)
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        if kind == "full":
            row[:] = 1
        elif kind == "padded":
            row[: rng.integers(3 * length // 4, length, endpoint=True)] = 1
        elif kind == "packed":
            start, end, number = 0, length - length // 32, 1
            while start < end:
                size = int(rng.integers(max(1, length // 8), max(1, length // 2), endpoint=True))
                row[start : min(start + size, end)] = number
                start, number = start + size, number + 1
        else:
            raise ValueError(f"unknown kind of batch: {kind!r}")
    return segments
