# SPDX-License-Identifier: Apache-2.0
"""Embeddings, softmax and positions: sections 3.4 and 3.5."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.config import ModelConfig
from transformer_jax.data.batch import PAD


def sinusoids(length: int, d_model: int) -> np.ndarray:
    """The position encodings of section 3.5, [length, D] float32.

    PE(pos, 2i) = sin(pos / 10000^(2i / D)),  PE(pos, 2i + 1) = cos(pos / 10000^(2i / D))
    """
    positions = np.arange(length, dtype=np.float64)[:, None]
    angles = positions / 10_000.0 ** (np.arange(0, d_model, 2, dtype=np.float64) / d_model)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # [length, ceil(D / 2), 2]
    return table.reshape(length, 2 * table.shape[1])[:, :d_model].astype(np.float32)


class Embedding(nnx.Module):
    """One matrix for source, target and softmax (section 3.4), and the positions added to it."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        """`dtype`: of the sums that `embed` returns and of the softmax's matrix product."""
        self.config, self.dtype = config, dtype
        initial = nnx.initializers.normal(config.d_model**-0.5)
        self.table = nnx.Param(initial(rngs.params(), (config.vocab_size, config.d_model)))
        shape = (config.max_length, config.d_model)
        learned = config.positions == "learned"
        self.position_table = nnx.Param(initial(rngs.params(), shape)) if learned else None
        self.bias = nnx.Param(jnp.zeros(config.vocab_size)) if config.logits_bias else None

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Vectors of tokens, times sqrt(D) (section 3.4), without positions."""
        return self.table[ids].astype(self.dtype) * jnp.asarray(
            self.config.d_model**0.5, self.dtype
        )

    def start(self, dtype: jnp.dtype) -> Float[Array, " D"]:
        """The decoder's first input, before its position is added: config.decoder_start."""
        if self.config.decoder_start == "zero":
            return jnp.zeros(self.config.d_model, dtype)
        return self.embed(jnp.full((1, 1), PAD))[0, 0]

    def encode_positions(self, positions: Int[Array, "B T"], longest: int) -> Float[Array, "B T D"]:
        """The encodings of `positions`, all of which are less than `longest`.

        Others are NaN, and so is what follows from them, as are those behind the end of a learned
        table. By itself an index beyond the end would silently mean the last row.
        """
        if self.position_table is None:
            table = jnp.asarray(sinusoids(max(longest, 1), self.config.d_model), self.dtype)
        else:
            table = self.position_table[...]
        places = jnp.where(positions < 0, table.shape[0], positions)  # not counted from the end
        return table.at[places].get(mode="fill", fill_value=jnp.nan).astype(self.dtype)

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... VOCAB"]:
        """The softmax's input, float32 (section 3.4: the transpose of the embedding, no bias).

        A bias is there only with config.logits_bias.
        """
        logits = jnp.einsum(
            "...d,vd->...v",
            hidden,
            self.table[...].astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        if self.bias is None:
            return logits
        return logits + jnp.broadcast_to(self.bias[...].astype(jnp.float32), logits.shape)
