# SPDX-License-Identifier: Apache-2.0
"""A batch: the only thing that the data side hands to training."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

PAD, EOS, UNKNOWN = 0, 1, 2  # token ids, the same in every vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """One side of a batch. Arrays of one shape, [B, S] or [B, T], int32.

    A row holds one sentence after the other, each closed by EOS, then padding. Padding is
    segment 0 and nothing else: no consumer asks for a pad id.
    """

    ids: Any
    segments: Any  # 0: padding; 1, 2, ...: which sentence of the row
    positions: Any  # of the token in its sentence, from 0

    @classmethod
    def of(cls, ids: ArrayLike | Sequence[Sequence[int]]) -> "Tokens":
        """One sentence a row, from its token ids [B, S]; PAD behind its end, as rows are equally long."""
        ids = jnp.asarray(ids, jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return cls(ids, (ids != PAD).astype(jnp.int32), jnp.where(ids != PAD, positions, 0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Sentence pairs: in row b, segment i of `source` is translated by segment i of `target`."""

    source: Tokens
    target: Tokens
    rows: Any  # [B] int32: the row's number in the global batch, the same however it is split
