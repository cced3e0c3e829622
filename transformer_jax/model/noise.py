# SPDX-License-Identifier: Apache-2.0
"""Where dropout's randomness comes from: a function of (seed, step, place), never a generator's state.

A model called with `noise=None` is being evaluated; there is no other mode flag.
"""

import dataclasses

import jax
import jax.numpy as jnp
from attention_kernels import dropout as drop_entries
from attention_kernels import fold
from jaxtyping import Array, Float, Int, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
    """One step's randomness: a seed, and the global number of each row of the batch.

    Because a mask depends on the row's global number, a batch that is split over devices or over
    the pieces of an accumulated step drops the same entries as the whole.
    """

    seed: UInt32[Array, ""]
    rows: Int[Array, " B"]

    @classmethod
    def of_step(cls, seed: int, step: Int[Array, ""] | int, rows: Int[Array, " B"]) -> "Noise":
        """The noise of training step `step` of the run with this seed."""
        return cls(fold(jnp.uint32(seed), jnp.asarray(step)), rows)

    def at(self, place: Int[Array, ""] | int) -> "Noise":
        """An independent noise for one place (a layer, a sublayer) of the model."""
        return Noise(fold(self.seed, jnp.asarray(place)), self.rows)


def at(noise: Noise | None, place: Int[Array, ""] | int) -> Noise | None:
    """`noise.at(place)`, or None when there is no noise."""
    return None if noise is None else noise.at(place)


def dropout(x: Float[Array, "B T D"], rate: float, noise: Noise | None) -> Float[Array, "B T D"]:
    """Dropout (section 5.4) in training; the identity in evaluation."""
    if noise is None or rate == 0.0:
        return x
    return drop_entries(x, rate=rate, seed=noise.seed, row_ids=noise.rows)
