# SPDX-License-Identifier: Apache-2.0
"""What the card can do, measured in the same run: a large matrix product, a large copy, an empty call."""

import jax
import jax.numpy as jnp

from experiments.benchmarks.programs import JaxProgram
from experiments.benchmarks.rows import Entry, Row

PRODUCT, COPY, NOTHING = "matrix product", "copy", "empty call"


def rows(smoke: bool) -> list[Row]:
    """Three rows, all of XLA."""
    size, words = (64, 2**8) if smoke else (8192, 2**29)

    def product() -> list[Entry]:
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
        return [Entry("XLA", "call", lambda: JaxProgram(jax.jit(jnp.matmul), a, b))]

    def copy() -> list[Entry]:
        # The complement, since XLA would leave out a copy.
        array = jax.random.bits(jax.random.key(0), (words,))
        return [Entry("XLA", "call", lambda: JaxProgram(jax.jit(jnp.bitwise_not), array))]

    def nothing() -> list[Entry]:
        return [Entry("XLA", "call", lambda: JaxProgram(jax.jit(jnp.negative), jnp.float32(1)))]

    return [
        Row(PRODUCT, {"flops": {"call": 2 * size**3}}, product),
        Row(COPY, {"bytes": {"call": 2 * 4 * words}}, copy),
        Row(NOTHING, {}, nothing),
    ]
