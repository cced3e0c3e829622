# SPDX-License-Identifier: Apache-2.0
"""What one program of the attention kernel does: the walk over tiles, forward and backward.

The walk is FlashAttention's (Dao 2023): the matrix of scores exists one tile at a time.

                 queries of a tile ->
               +-------------------+
    keys |     | scores, weights:  |   forward: a program has a tile of queries and walks down the
         v     | [BK, BQ]          |     keys, with a running maximum and sum of each query
               |                   |   backward: a program has a tile of keys and walks across the
               +-------------------+     queries; P is made again from the saved log-sum-exp

A tile stands transposed, keys down and queries across, so that what there is one of per query
(maximum, sum, log-sum-exp, segment) is a row [1, BQ] and never needs turning. Where one tile holds
all keys, the walk down is a single step, and one backward kernel makes all three gradients. Longer
sequences have a second backward kernel for the queries' gradient, so that no two programs write the
same place.

Letters: BQ, BK a tile's queries and keys, G groups of heads. Every reference lacks the axes that
the grid runs over: rows of the batch, groups of heads, tiles.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from attention_kernels.dropout import fold, keep_mask, keep_scale

LOWEST = -1e30  # below every score, and finite: no NaN where a query sees nothing


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for."""

    queries: int  # BQ
    keys: int  # BK
    heads: int  # of queries, that one program computes, one after the other
    key_heads: int  # that these look at
    sharing: int  # query heads that share a key head
    k: int  # features of a query and a key of one head
    v: int  # features of a value
    causal: bool
    offset: bool  # the first query does not stand where the first key does
    rate: float  # of dropout
    precision: Any = None  # of matrix products, as `lax.dot_general` takes it


def of_queries(
    out: Float[Array, "B T H V"],
    lse: Float[Array, "B H T"],
    d_out: Float[Array, "B T H V"],
    d_lse: Float[Array, "B H T"],
) -> tuple[Float[Array, "B H T"], Float[Array, "B H T"]]:
    """The two numbers of each query that the backward kernels take: log-sum-exp, and delta.

    Delta is the sum over keys of weight times its gradient (Dao et al. 2022, B.2), less the log-sum-exp's own
    gradient, which is that of every score by its weight. The weights of a query that sees nothing are 0 by
    the mask; its numbers have only to be finite.
    """
    deltas = jnp.einsum("bthv,bthv->bht", out.astype(jnp.float32), d_out.astype(jnp.float32))
    seen = lse > -jnp.inf
    return jnp.where(seen, lse, 0.0), jnp.where(seen, deltas - d_lse, 0.0)


def attention_forward(
    words, offsets, query_segments, key_segments, query, key, value, out, lse, *, plan: Plan
):
    """One tile of queries, all keys: equation 1, and the log-sum-exp of every query's scores.

    In: words [1, heads], offsets [1, 1], query_segments [1, BQ], key_segments [S, 1],
    query [BQ, heads K], key [S, key_heads K], value [S, key_heads V]. Out: out [BQ, heads V],
    lse [heads, BQ].
    """
    first_query = _offset(plan, offsets) + pl.program_id(2) * plan.queries
    for head in range(plan.heads):
        q = query[:, _columns(head, plan.k)]

        def step(number, carry, head=head, q=q):
            largest, total, sums = carry  # [1, BQ], [1, BQ], [V, BQ]
            key_head = head * plan.key_heads // plan.heads
            first_key, rows = _rows(number, plan.keys)
            seen = _visible(
                plan, query_segments[...], key_segments[rows, :], first_query, first_key
            )
            scores = _dot(plan, key[rows, _columns(key_head, plan.k)], q, 1, 1)
            scores = jnp.where(seen, scores, LOWEST)
            new_largest = jnp.maximum(largest, scores.max(axis=0, keepdims=True))
            weights = jnp.where(seen, jnp.exp(scores - new_largest), 0.0)
            shrink = jnp.exp(largest - new_largest)
            total = shrink * total + weights.sum(axis=0, keepdims=True)
            weights = _drop(plan, weights, words[:, head : head + 1], first_query, first_key)
            v = value[rows, _columns(key_head, plan.v)]
            return new_largest, total, shrink * sums + _dot(plan, v, weights.astype(v.dtype), 0, 0)

        zeros = jnp.zeros((1, plan.queries), jnp.float32)
        start = zeros + LOWEST, zeros, jnp.zeros((plan.v, plan.queries), jnp.float32)
        tiles = _tiles_seen(plan, key.shape[0], first_query)
        largest, total, sums = _walk(0, tiles, step, start)
        total = jnp.where(total == 0.0, 1.0, total)
        out[:, _columns(head, plan.v)] = (sums / total).T.astype(out.dtype)
        lse[head : head + 1, :] = largest + jnp.log(total)


def attention_backward(
    words,
    offsets,
    query_segments,
    key_segments,
    query,
    key,
    value,
    lse,
    deltas,
    d_out,
    d_key,
    d_value,
    d_query=None,
    *,
    plan: Plan,
):
    """One tile of keys, all queries: the gradients of these keys and values.

    In: as in the forward kernel, but all queries [T, ...] and BK keys, lse and deltas [heads, T],
    d_out [T, heads V]. Out: d_key [BK, key_heads K], d_value [BK, key_heads V], and where the tile holds
    all keys, d_query [T, heads K].
    """
    offset, first_key = _offset(plan, offsets), pl.program_id(2) * plan.keys
    tiles = query.shape[0] // plan.queries
    # Where d_query is written here, it is for every query, even one that sees no key.
    first: Any = 0
    if plan.causal and d_query is None:
        first = jnp.maximum(lax.div(first_key - offset, jnp.int32(plan.queries)), 0)
    for head in range(plan.heads):
        key_head, member = divmod(head * plan.key_heads, plan.heads)
        k, v = key[:, _columns(key_head, plan.k)], value[:, _columns(key_head, plan.v)]

        def step(number, carry, head=head, k=k, v=v):
            d_k, d_v = carry  # [BK, K], [BK, V]
            first_query, rows = _rows(number, plan.queries)
            q, d_o = query[rows, _columns(head, plan.k)], d_out[rows, _columns(head, plan.v)]
            place = offset + first_query, first_key
            weights, d_scores = _tile_gradients(
                plan,
                (q, k, v, d_o),
                lse[head : head + 1, rows],
                deltas[head : head + 1, rows],
                _visible(plan, query_segments[:, rows], key_segments[...], *place),
                words[:, head : head + 1],
                place,
            )
            if d_query is not None:
                d_q = _dot(plan, d_scores, k, 0, 0)
                d_query[rows, _columns(head, plan.k)] = d_q.astype(d_query.dtype)
            return d_k + _dot(plan, d_scores, q, 1, 0), d_v + _dot(plan, weights, d_o, 1, 0)

        if member == 0:
            sums = tuple(jnp.zeros((plan.keys, size), jnp.float32) for size in (plan.k, plan.v))
        sums = _walk(first, tiles, step, sums)
        if member + plan.key_heads == plan.heads:  # the last of those that share the key head
            d_key[:, _columns(key_head, plan.k)] = sums[0].astype(d_key.dtype)
            d_value[:, _columns(key_head, plan.v)] = sums[1].astype(d_value.dtype)


def attention_query_backward(
    words,
    offsets,
    query_segments,
    key_segments,
    query,
    key,
    value,
    lse,
    deltas,
    d_out,
    d_query,
    *,
    plan: Plan,
):
    """One tile of queries, all keys: the gradient of these queries, [BQ, heads K]."""
    first_query = _offset(plan, offsets) + pl.program_id(2) * plan.queries
    for head in range(plan.heads):
        key_head = head * plan.key_heads // plan.heads
        q, d_o = query[:, _columns(head, plan.k)], d_out[:, _columns(head, plan.v)]

        def step(number, d_q, head=head, key_head=key_head, q=q, d_o=d_o):
            first_key, rows = _rows(number, plan.keys)
            k = key[rows, _columns(key_head, plan.k)]
            v = value[rows, _columns(key_head, plan.v)]
            _, d_scores = _tile_gradients(
                plan,
                (q, k, v, d_o),
                lse[head : head + 1, :],
                deltas[head : head + 1, :],
                _visible(plan, query_segments[...], key_segments[rows, :], first_query, first_key),
                words[:, head : head + 1],
                (first_query, first_key),
            )
            return d_q + _dot(plan, d_scores, k, 0, 0)

        tiles = _tiles_seen(plan, key.shape[0], first_query)
        d_q = _walk(0, tiles, step, jnp.zeros((plan.queries, plan.k), jnp.float32))
        d_query[:, _columns(head, plan.k)] = d_q.astype(d_query.dtype)


def _tile_gradients(plan, vectors, lse, deltas, seen, word, place):
    """(weights after dropout, gradient of the scores), [BK, BQ] in the inputs' dtype."""
    q, k, v, d_out = vectors
    scores = _dot(plan, k, q, 1, 1)
    weights = jnp.where(seen, jnp.exp(scores - lse), 0.0)
    d_weights = _drop(plan, _dot(plan, v, d_out, 1, 1), word, *place)
    d_scores = weights * (d_weights - deltas)
    return _drop(plan, weights, word, *place).astype(d_out.dtype), d_scores.astype(q.dtype)


def _visible(plan, query_segments, key_segments, first_query, first_key):
    """[BK, BQ], from segments [1, BQ] and [BK, 1]; see `reference.attention_mask`."""
    seen = (key_segments == query_segments) & (query_segments != 0)
    if plan.causal:
        queries = first_query + lax.broadcasted_iota(jnp.int32, seen.shape, 1)
        seen &= queries >= first_key + lax.broadcasted_iota(jnp.int32, seen.shape, 0)
    return seen


def _drop(plan, tile, word, first_query, first_key):
    """Dropout of a tile [BK, BQ] by `dropout.dropout_bits`; `word` [1, 1] is (row, head)'s."""
    if plan.rate == 0.0:
        return tile
    keys, queries = tile.shape
    word = fold(word, first_query + lax.broadcasted_iota(jnp.int32, (1, queries), 1))
    bits = fold(word, first_key + lax.broadcasted_iota(jnp.int32, (keys, 1), 0))
    return jnp.where(keep_mask(bits, plan.rate), tile * keep_scale(plan.rate), 0.0)


def _dot(plan, a, b, a_axis, b_axis):
    """The product over these axes, accumulated in float32."""
    return lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=plan.precision,
        preferred_element_type=jnp.float32,
    )


def _offset(plan, offsets):
    """Where the first of all queries stands among the keys."""
    return offsets[0, 0] if plan.offset else 0


def _tiles_seen(plan, keys, first_query):
    """How many tiles of keys a tile of queries walks down: with `causal`, none to its right."""
    tiles = keys // plan.keys
    if not plan.causal or tiles == 1:
        return tiles
    last = first_query + plan.queries
    seen = lax.div(last + (plan.keys - 1), jnp.int32(plan.keys))
    return jnp.minimum(jnp.maximum(seen, 0), tiles)


def _walk(first, last, step, carry):
    """`lax.fori_loop`, without the loop where there is one tile."""
    if isinstance(first, int) and isinstance(last, int) and last - first == 1:
        return step(first, carry)
    return lax.fori_loop(jnp.int32(first), jnp.int32(last), step, carry)


def _rows(number: Any, size: int):
    """Where a tile begins, and its rows."""
    start = number * size
    if not isinstance(start, int):
        start = pl.multiple_of(start, size)
    return start, pl.ds(start, size)


def _columns(head: int, size: int) -> slice:
    return slice(head * size, (head + 1) * size)
