# SPDX-License-Identifier: Apache-2.0
"""How hypotheses replace one another, and what the cache knows of them moves along.

Of W new hypotheses most continue one that already stands in their place. On a CPU only the others are
copied, block after block, and of those only the positions where they differ.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

_LARGEST_BLOCK = 10  # positions that _copy moves at a time, at most


def assign_places(parents: Int[Array, "B W"]) -> Int[Array, "B W"]:
    """Which of the W new hypotheses goes to each place, so that few of them have to move.

    The first continuation of a hypothesis takes the place that it had; the others take the places of
    the hypotheses that nothing continues.
    """
    width = parents.shape[1]
    same = parents[:, :, None] == parents[:, None, :]  # [B, new, new]
    earlier = jnp.tri(width, k=-1, dtype=bool)[None]  # [1, new, new]
    first = ~jnp.any(same & earlier, axis=-1)  # [B, new]
    places = jnp.arange(width)[None, :, None]  # [1, place, 1]
    heirs = first[:, None] & (parents[:, None] == places)  # [B, place, new]
    free, movers = ~heirs.any(axis=-1), ~first  # as many of one as of the other
    numbers = jnp.where(free, jnp.cumsum(free, axis=1), 0)[:, :, None]  # from 1
    settlers = movers[:, None] & (numbers == jnp.cumsum(movers, axis=1)[:, None])
    return jnp.argmax(heirs | settlers, axis=-1)


def move(
    live_ids: Int[Array, "B W L"],
    cache: Any,
    parents: Int[Array, "B W"],
    alive: Bool[Array, "B W"],
    position: Int[Array, ""],
    cache_axis: int | None,
) -> tuple[Int[Array, "B W L"], Any]:
    """Hypothesis w, if it is alive, gets the tokens and the cache that hypothesis parents[w] had.

    What the cache has of a position is a function of the tokens before it. Where those are the same,
    nothing has to be copied, if `cache_axis` tells where the positions are.
    """
    places = jnp.arange(parents.shape[1])[None]  # [1, W]
    parents = jnp.where(alive, parents, places)
    moved_ids = gather(live_ids, parents)
    if jax.default_backend() != "cpu":
        return moved_ids, jax.tree.map(partial(gather, order=parents), cache)
    leaves = jax.tree.leaves(cache)
    if not leaves or not parents.shape[0]:
        return moved_ids, cache
    if cache_axis is None:
        return moved_ids, _copy(cache, parents, (parents != places)[..., None], None)
    size = _block(leaves[0].shape[cache_axis])
    blocks = jnp.arange(leaves[0].shape[cache_axis] // size)
    last = (blocks * size + size - 1)[None, None]  # position of each block, [1, 1, blocks]
    # The first token that differs; what is remembered of the positions behind it differs.
    length = live_ids.shape[2]
    positions = jnp.arange(length)[None, None]  # [1, 1, L]
    differs = jnp.where(moved_ids != live_ids, positions, length).min(axis=-1)  # [B, W]
    moving = (differs[..., None] < last) & (last - size + 1 <= position)  # [B, W, blocks]
    return moved_ids, _copy(cache, parents, moving, cache_axis)


def _block(length: int) -> int:
    """How many positions are copied at a time: a divisor of `length`."""
    return max(size for size in range(1, _LARGEST_BLOCK + 1) if length % size == 0)


def _copy(
    cache: Any, parents: Int[Array, "B W"], moving: Bool[Array, "B W blocks"], axis: int | None
) -> Any:
    """Block after block of positions on `axis`, and only those that move; without axis, all of them.

    Only a few hypotheses move, thanks to `assign_places`, and none from a place that another one goes to.
    """
    _, width, blocks = moving.shape
    order = jnp.argsort(~moving.reshape(-1))  # those that move come first

    def copy_block(number: Int[Array, ""], cache: Any) -> Any:
        row, block = order[number] // blocks, order[number] % blocks
        sentence, target = row // width, row % width
        source = parents[sentence, target]

        def copied(leaf: Array) -> Array:
            sizes, starts = [1, 1, *leaf.shape[2:]], [jnp.int32(0)] * (leaf.ndim - 2)
            if axis is not None:
                sizes[axis] = leaf.shape[axis] // blocks
                starts[axis - 2] = block * sizes[axis]
            part = lax.dynamic_slice(leaf, (sentence, source, *starts), sizes)
            return lax.dynamic_update_slice(leaf, part, (sentence, target, *starts))

        return jax.tree.map(copied, cache)

    return lax.fori_loop(0, moving.sum(), copy_block, cache)


def gather(leaf: Array, order: Int[Array, "B W"]) -> Array:
    """leaf [B, from, ...] rearranged to [B, W, ...]."""
    return leaf[jnp.arange(order.shape[0])[:, None], order]
