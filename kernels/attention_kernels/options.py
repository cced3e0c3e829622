# SPDX-License-Identifier: Apache-2.0
"""What every implementation of attention is given: arguments that were checked once, in one form."""

import dataclasses
from typing import Any, NamedTuple, TypedDict

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from attention_kernels.checks import check_floats, check_integers, check_scalar
from attention_kernels.dropout import Seed, checked_words


@dataclasses.dataclass(frozen=True)
class Options:
    """What a call is compiled for, beside the shapes and dtypes of its inputs."""

    causal: bool
    dropout_rate: float
    lse: bool  # the log-sum-exp of the scores is wanted, too


class Inputs(NamedTuple):
    """The arrays of a call: of one dtype, the queries times `scale`, one of G key heads for H / G query heads."""

    query: Float[Array, "B T H K"]
    key: Float[Array, "B S G K"]
    value: Float[Array, "B S G V"]
    query_segments: Int[Array, "B T"] | None  # both or none
    key_segments: Int[Array, "B S"] | None
    query_offset: Int[Array, " B"] | None  # the position of each row's first query; None: 0
    words: UInt32[Array, "B H"] | None = None  # of dropout: `dropout.head_words`

    def query_ids(self) -> Int[Array, "#B T"]:
        """The queries' positions among the keys: what `causal` and dropout count."""
        ids = jnp.arange(self.query.shape[1], dtype=jnp.int32)[None]
        return ids if self.query_offset is None else self.query_offset[:, None] + ids

    def complete(self) -> tuple[Array, ...]:
        """All seven, with an array for whatever is None: one segment, no offset, any word."""
        batch, queries, heads, _ = self.query.shape
        query_segments, key_segments = self.query_segments, self.key_segments
        offset, words = self.query_offset, self.words
        if query_segments is None or key_segments is None:
            query_segments = jnp.ones((batch, queries), jnp.int32)
            key_segments = jnp.ones((batch, self.key.shape[1]), jnp.int32)
        offset = jnp.zeros(batch, jnp.int32) if offset is None else offset
        words = jnp.zeros((batch, heads), jnp.uint32) if words is None else words
        return self.query, self.key, self.value, query_segments, key_segments, offset, words


class Arguments(TypedDict, total=False):
    """The keyword arguments of `attention`, which says what they mean, for type checkers."""

    query_segments: Int[Array, "B T"] | Bool[Array, "B T"] | None
    key_segments: Int[Array, "B S"] | Bool[Array, "B S"] | None
    causal: bool
    query_offset: Int[Array, ""] | Int[Array, " B"] | int | None
    dropout_rate: float
    dropout_seed: Seed | None
    row_ids: Int[Array, " B"] | None
    head_offset: Int[Array, ""] | int
    scale: Float[Array, ""] | float | None
    implementation: str | None


def make_inputs(
    query: Any,
    key: Any,
    value: Any,
    *,
    query_segments: Any = None,
    key_segments: Any = None,
    query_offset: Any = None,
    scale: Any = None,
    exact: bool = False,
) -> Inputs:
    """Check the arrays of a call of `attention`, and bring them into one form.

    `exact`: in float32 at least, as the oracle computes.

    Raises:
      TypeError, ValueError: they do not fit; the message names the arguments and their shapes.
    """
    check_floats({"query": query, "key": key, "value": value}, rank=4)
    _check_vectors(query, key, value)
    batch, queries, _, k = query.shape
    if query_offset is not None:
        check_integers("query_offset", query_offset, (), (batch,))
        query_offset = jnp.broadcast_to(jnp.asarray(query_offset).astype(jnp.int32), (batch,))
    scale = max(k, 1) ** -0.5 if scale is None else scale
    check_scalar(scale, "scale")
    dtypes = {query.dtype, key.dtype, value.dtype}
    dtype = query.dtype if len(dtypes) == 1 and not exact else wide(*dtypes)
    # Scaled before the product: once a query instead of once a score, and with a gradient for `scale`.
    scale = jnp.asarray(scale, wide(dtype))
    query = (jnp.asarray(query, wide(dtype)) * scale).astype(dtype)
    query_segments, key_segments = _both_segments(
        query_segments, key_segments, (batch, queries), (batch, key.shape[1])
    )
    key, value = jnp.asarray(key, dtype), jnp.asarray(value, dtype)
    return Inputs(query, key, value, query_segments, key_segments, query_offset)


def dropout_words(
    rate: float, seed: Any, row_ids: Any, rows: int, heads: int, head_offset: Any
) -> UInt32[Array, "{rows} {heads}"] | None:
    """`Inputs.words`: None where nothing is dropped.

    Raises:
      TypeError, ValueError: the seed is missing or none (`fold_in`), or the numbers do not fit.
    """
    if rate == 0.0:
        return None
    if seed is None:
        raise ValueError(f"dropout_rate={rate} needs a dropout_seed")
    return checked_words(seed, row_ids, rows, heads, head_offset, "dropout_seed")


def wide(*dtypes: Any) -> jnp.dtype:
    """In which sums, softmax and mixed inputs are computed: float32, or float64 where that comes in."""
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def _both_segments(query_segments, key_segments, query_shape, key_shape):
    """Both as int32, or None where everything sees everything.

    A side that is not given belongs to every segment: padding on the other side is all that is masked.
    """
    if query_segments is None and key_segments is None:
        return None, None
    if query_segments is not None:
        check_integers("query_segments", query_segments, query_shape, booleans=True)
        query_segments = jnp.asarray(query_segments).astype(jnp.int32)
    if key_segments is not None:
        check_integers("key_segments", key_segments, key_shape, booleans=True)
        key_segments = jnp.asarray(key_segments).astype(jnp.int32)
    if query_segments is None:
        return jnp.ones(query_shape, jnp.int32), (key_segments != 0).astype(jnp.int32)
    if key_segments is None:
        return (query_segments != 0).astype(jnp.int32), jnp.ones(key_shape, jnp.int32)
    return query_segments, key_segments


def _check_vectors(query: Any, key: Any, value: Any) -> None:
    """[B, T, H, K], [B, S, G, K] and [B, S, G, V], where G divides H."""
    fit = {
        "the same batch": query.shape[0] == key.shape[0] == value.shape[0],
        "keys and values of the same length": key.shape[1] == value.shape[1],
        "keys and values of the same number of heads": key.shape[2] == value.shape[2],
        "a number of key heads that divides that of query heads": (
            query.shape[2] == key.shape[2]
            or (key.shape[2] > 0 and query.shape[2] % key.shape[2] == 0)
        ),
        "queries and keys of the same number of features": query.shape[3] == key.shape[3],
    }
    for what, fits in fit.items():
        if not fits:
            raise ValueError(
                f"query [B, T, H, K], key [B, S, G, K] and value [B, S, G, V] need {what}; they have "
                f"shapes {query.shape}, {key.shape}, {value.shape}"
            )
