# SPDX-License-Identifier: Apache-2.0
"""Attention, forward and backward: ours against XLA, cuDNN, tokamax, Flax and PyTorch.

All get the same bfloat16 arrays in the layout that a model's projections have, [B, T, H, K]. Ours gets
segments; the others what they can use best: lengths or `is_causal` where that says it all, otherwise a
matrix [B, 1, T, T] that is made before the clock runs. A query in padding may see padding, so that no
softmax is empty; outputs and gradients of padding are not compared.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.programs import JaxProgram, TorchProgram, several, to_numpy, to_torch
from experiments.benchmarks.rows import Entry, Row
from experiments.benchmarks.work import (
    attention_bytes,
    attention_flops,
    segments_of,
    visible_pairs,
)

FORWARD, BOTH = "forward", "forward+backward"
FEATURES = 64  # K = V
_TOKENS = 25_000  # of a batch: section 5.1
_SHORT = 256  # up to here several batches stand in memory, since one would fit the cache
_LARGEST = 2**28  # entries of the scores that the reference makes, in float32
_SEED = 7

OURS = ["pallas", "mosaic_gpu", "xla"]
PEERS = ["jax.nn, XLA", "jax.nn, cuDNN", "tokamax", "Flax, XLA", "PyTorch SDPA"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch: T = S = `length`."""

    length: int
    heads: int
    segments: str  # "full", "padded" or "packed": work.segments_of
    causal: bool
    rate: float  # of dropout
    tokens: int = _TOKENS

    @property
    def rows(self) -> int:
        """B: as many rows as the tokens fill."""
        return max(1, self.tokens // self.length)

    def __str__(self):
        how = [
            self.segments,
            *["causal"] * self.causal,
            *[f"dropout {self.rate}"] * bool(self.rate),
        ]
        return f"{self.rows} x {self.length}, {self.heads} heads, {', '.join(how)}"


SHORT, LONG = (64, 128, 256, 32), (2_048, 8_192, 16_384)

# What decides most comes first: time may run out.
CASES = [
    *(Case(length, 8, "packed", False, 0.1) for length in SHORT),
    *(Case(length, 8, "full", True, 0.0) for length in LONG),
    *(Case(length, 8, "padded", False, 0.0) for length in SHORT),
    *(Case(length, 16, "packed", False, 0.1) for length in SHORT),
    *(Case(length, 8, "packed", True, 0.1) for length in LONG),
    *(Case(length, 8, "packed", True, 0.1) for length in SHORT),
    *(Case(length, 8, "packed", False, 0.0) for length in SHORT),
    *(Case(length, 8, "padded", False, 0.1) for length in SHORT),
    *(Case(length, 16, "padded", False, 0.0) for length in SHORT),
    *(Case(length, 8, "full", False, 0.0) for length in (*SHORT, *LONG)),
    *(Case(length, 8, "packed", True, 0.0) for length in LONG),
]
SMOKE = [
    Case(8, 2, "packed", False, 0.1, tokens=24),
    Case(16, 2, "padded", True, 0.0, tokens=32),
]


def rows(smoke: bool) -> list[Row]:
    """A row for every case."""
    return [_row(case) for case in (SMOKE if smoke else CASES)]


def _row(case: Case) -> Row:
    pairs = visible_pairs(segments_of(case.segments, case.rows, case.length), case.causal)
    sizes, positions = (case.heads, FEATURES), case.rows * case.length
    kinds = (FORWARD, False), (BOTH, True)
    facts = {
        "flops": {kind: attention_flops(pairs, *sizes, backward) for kind, backward in kinds},
        "bytes": {kind: attention_bytes(positions, *sizes, backward) for kind, backward in kinds},
        "peers": PEERS,
    }
    return Row(f"attention {case}", facts, lambda: _entries(case))


def _entries(case: Case) -> list[Entry]:
    """Every contestant twice: forward, and forward with backward."""
    inputs = Inputs.of(case)
    entries = []
    for contestant in (*OURS, *PEERS):
        for kind in (FORWARD, BOTH):
            make = functools.partial(_make, case, inputs, contestant, kind)
            # Whoever drops other entries than ours cannot be compared with the reference.
            comparable = case.rate == 0.0 or contestant in OURS
            check = functools.partial(inputs.errors, kind) if comparable else lambda outputs: {}
            entries.append(Entry(contestant, kind, make, check))
    return entries


def _make(case: Case, inputs: "Inputs", contestant: str, kind: str) -> JaxProgram | TorchProgram:
    if contestant == "PyTorch SDPA":
        return _torch(case, inputs, kind)
    if case.rate and contestant in ("jax.nn, XLA", "jax.nn, cuDNN", "tokamax"):
        raise NotImplementedError("no dropout that training can use")
    if not case.rate and contestant == "Flax, XLA":
        raise NotImplementedError("without dropout it is jax.nn, XLA")
    function, arrays = _jax_function(case, inputs, contestant)

    def forward(query, key, value, d_out, arrays):
        return (function(query, key, value, **arrays),)

    def both(query, key, value, d_out, arrays):
        out, backward = jax.vjp(functools.partial(function, **arrays), query, key, value)
        return out, *backward(d_out)

    # Arguments all of them: of what a program closes over XLA makes constants, and computes with them.
    sets = [(*vectors, arrays) for vectors in inputs.sets]
    return several(forward if kind == FORWARD else both, sets)


def _jax_function(
    case: Case, inputs: "Inputs", contestant: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function of query, key and value, and the other arrays that it takes, by name."""
    if contestant in OURS:
        function = functools.partial(
            attention_kernels.attention,
            causal=case.causal,
            dropout_rate=case.rate,
            implementation=contestant,
        )
        arrays: dict[str, Any] = {"dropout_seed": jnp.uint32(_SEED)}
        if case.segments != "full":
            arrays |= {"query_segments": inputs.segments, "key_segments": inputs.segments}
        return function, arrays
    if contestant == "Flax, XLA":
        from flax import nnx  # here, since no version of it goes with every version of jax

        function = functools.partial(
            nnx.dot_product_attention, dropout_rate=case.rate, broadcast_dropout=False
        )
        return function, {
            "mask": inputs.mask(with_causal=True),
            "dropout_rng": jax.random.key(_SEED),
        }
    if contestant == "tokamax":
        import tokamax

        function = tokamax.dot_product_attention
    else:
        implementation = {"jax.nn, XLA": "xla", "jax.nn, cuDNN": "cudnn"}[contestant]
        function = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    if case.segments == "padded":
        arrays = {"query_seq_lengths": inputs.lengths, "key_value_seq_lengths": inputs.lengths}
    else:
        arrays = {"mask": inputs.mask(with_causal=False)}
    return functools.partial(function, is_causal=case.causal), arrays


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Several batches of one case, on the device, and what the reference makes of the first."""

    case: Case
    sets: Sequence[tuple[jax.Array, ...]]  # (query, key, value, gradient of the output)
    segments: jax.Array

    @classmethod
    def of(cls, case: Case) -> "Inputs":
        """Random vectors; the gradient is zero where there is padding."""
        segments = jnp.asarray(segments_of(case.segments, case.rows, case.length))
        shape = case.rows, case.length, case.heads, FEATURES
        sets = []
        for number in range(4 if case.length <= _SHORT else 1):
            keys = jax.random.split(jax.random.key(number), 4)
            *arrays, d_out = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
            sets.append((*arrays, jnp.where(segments[..., None, None] > 0, d_out, 0)))
        return cls(case, sets, segments)

    @property
    def lengths(self) -> jax.Array:
        """Tokens of every row, [B]."""
        return (self.segments > 0).sum(axis=1).astype(jnp.int32)

    def mask(self, with_causal: bool) -> jax.Array | None:
        """[B, 1, T, T], true where a query may look; None if that is everywhere."""
        if self.case.segments == "full" and not (with_causal and self.case.causal):
            return None
        mask = (self.segments[:, :, None] == self.segments[:, None, :])[:, None]
        return jnp.tril(mask) if with_causal and self.case.causal else mask

    @functools.cached_property
    def compared(self) -> tuple[int, int]:
        """How many rows and heads the reference can compute: its matrix of scores must fit."""
        entries = self.case.length**2
        rows = max(1, min(4, self.case.rows, _LARGEST // entries))
        return rows, max(1, min(self.case.heads, _LARGEST // (rows * entries)))

    @functools.cached_property
    def expected(self) -> list[np.ndarray]:
        """Output and gradients of the first rows and heads of the first batch, in float32."""
        rows, heads = self.compared
        segments = self.segments[:rows]

        @jax.jit
        def reference(query, key, value, d_out):
            function = functools.partial(
                attention_kernels.attention,
                query_segments=segments,
                key_segments=segments,
                causal=self.case.causal,
                dropout_rate=self.case.rate,
                dropout_seed=jnp.uint32(_SEED),
                implementation="reference",
            )
            out, backward = jax.vjp(function, query, key, value)
            return out, *backward(d_out)

        arrays = [array[:rows, :, :heads].astype(jnp.float32) for array in self.sets[0]]
        return [np.asarray(array) for array in reference(*arrays)]

    def errors(self, kind: str, outputs: Any) -> dict[str, float]:
        """The largest difference over the largest value: of the output; worst of the gradients."""
        rows, heads = self.compared
        real = np.asarray(self.segments[:rows] > 0)
        found = []
        for ours, theirs in zip(outputs[0], self.expected, strict=False):
            ours = to_numpy(ours[:rows, :, :heads])[real]
            error = np.abs(ours - theirs[real]).max() / np.abs(theirs[real]).max()
            found.append(float(error) if math.isfinite(error) else math.inf)
        return {"error": found[0]} | ({"gradient_error": max(found[1:])} if found[1:] else {})


def _torch(case: Case, inputs: Inputs, kind: str) -> TorchProgram:
    """Scaled dot-product attention over views of [B, T, H, K], as a PyTorch model calls it."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    mask = inputs.mask(with_causal=True) if case.segments != "full" else None
    if case.segments == "padded" and not case.causal:
        mask = (inputs.segments > 0)[:, None, None, :]
    mask = None if mask is None else to_torch(mask)
    attend = functools.partial(
        scaled_dot_product_attention,
        attn_mask=mask,
        dropout_p=case.rate,
        is_causal=case.causal and mask is None,
    )
    sets = [[to_torch(array) for array in arrays] for arrays in inputs.sets]

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, d_out: torch.Tensor):
        if kind == FORWARD:
            with torch.no_grad():
                heads = [array.transpose(1, 2) for array in (query, key, value)]
                return (attend(*heads).transpose(1, 2),)
        inputs = [array.requires_grad_() for array in (query, key, value)]
        out = attend(*(array.transpose(1, 2) for array in inputs)).transpose(1, 2)
        return out.detach(), *torch.autograd.grad(out, inputs, d_out)

    holds = sum(array.nbytes for array in (*sets[0], mask) if array is not None)
    each = [functools.partial(call, *arrays) for arrays in sets]
    return TorchProgram(each, holds=holds, graph=True)
