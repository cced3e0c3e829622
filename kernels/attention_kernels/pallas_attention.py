# SPDX-License-Identifier: Apache-2.0
"""Attention as Pallas kernels: for TPUs, and for GPUs through Triton. What a program does: tiles.py."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jaxtyping import Array, Float

from attention_kernels import backends, tiles
from attention_kernels.backends import Device, pallas_call, power_of_two
from attention_kernels.options import Inputs, Options
from attention_kernels.tiles import Plan

_WIDEST = {"cpu": 256, "gpu": 128, "tpu": 256}  # features of a head
_DTYPES = {
    "cpu": (jnp.float32, jnp.bfloat16, jnp.float16),
    "gpu": (jnp.float32, jnp.bfloat16, jnp.float16),
    "tpu": (jnp.float32, jnp.bfloat16),
}


def unsupported(inputs: Inputs, device: Device) -> str | None:
    """Why these inputs cannot be served on this device, or None if they can."""
    reason = backends.unsupported(device, *inputs[:3])
    if reason:
        return reason
    dtype, dtypes = inputs.query.dtype, _DTYPES[device.platform]
    if dtype not in dtypes:
        known = ", ".join(jnp.dtype(known).name for known in dtypes)
        return f"inputs of dtype {dtype}, which is not one of {known}"
    k, v, widest = inputs.query.shape[3], inputs.value.shape[3], _WIDEST[device.platform]
    if max(k, v) > widest:
        return f"heads of {k} and {v} features, more than {widest}"
    if device.platform == "gpu" and device.shared_memory < _SMALL:
        return f"a GPU whose blocks have {device.shared_memory} bytes of shared memory"
    if device.vmem is None:
        return None
    if device.kind in ("TPU v2", "TPU v3"):
        return f"a {device.kind}, whose compiler takes no bfloat16 and overflows in float32"
    plan = _plan(inputs, Options(causal=False, dropout_rate=0.0, lse=False), device)
    if _vmem(plan, inputs) > device.vmem * 3 // 4:  # a quarter for what is not blocks
        return f"a sequence too long for the vector memory of a {device.kind}"
    return None


def forward(
    inputs: Inputs, *, options: Options, device: Device
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H T"]]:
    """Equation 1, and the log-sum-exp of every query's scores."""
    plan = _plan(inputs, options, device)
    arrays = _lay_out(plan, inputs)
    words, *_, query, key, _ = arrays
    batch, groups, queries = query.shape[0], words.shape[1], query.shape[1]
    in_specs, out_specs = _forward_blocks(plan, key.shape[1])
    out, lse = pallas_call(
        functools.partial(tiles.attention_forward, plan=plan),
        arrays,
        device=device,
        grid=(batch, groups, queries // plan.queries),
        in_specs=in_specs,
        outputs=[
            (out_specs[0], (batch, queries, groups * plan.heads * plan.v), query.dtype),
            (out_specs[1], (batch, groups, plan.heads, queries), jnp.float32),
        ],
        **_work(plan, arrays, products_of_k=1, products_of_v=1),
    )
    _, length, heads, _ = inputs.query.shape
    out = out.reshape(batch, queries, heads, plan.v)[:, :length, :, : inputs.value.shape[3]]
    lse = lse.reshape(batch, heads, queries)[..., :length]
    return out, jnp.where(lse > tiles.LOWEST, lse, -jnp.inf)


def backward(
    inputs: Inputs,
    out: Float[Array, "B T H V"],
    lse: Float[Array, "B H T"],
    d_out: Float[Array, "B T H V"],
    d_lse: Float[Array, "B H T"],
    *,
    options: Options,
    device: Device,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B S G K"], Float[Array, "B S G V"]]:
    """The gradients of query, key and value."""
    plan = _plan(inputs, options, device)
    arrays = _lay_out(plan, inputs)
    words, *_, query, key, _ = arrays
    batch, queries, keys, groups = *query.shape[:2], key.shape[1], words.shape[1]

    def rows(of):
        """[B, H, T] -> [B, groups, heads, T']."""
        padded = jnp.pad(of, ((0, 0), (0, 0), (0, queries - of.shape[2])))
        return padded.reshape(batch, groups, plan.heads, queries)

    lse, deltas = tiles.of_queries(out, lse, d_out, d_lse)
    d_out = _pad(d_out.astype(query.dtype), plan.queries, plan.v)
    arrays = (*arrays, rows(lse), rows(deltas), d_out)
    one_tile = keys == plan.keys
    if one_tile and device.platform == "gpu":
        # Three gradients at a time: a GPU's registers hold half the tile that the forward pass has.
        plan = dataclasses.replace(plan, queries=min(plan.queries, 4096 // plan.keys))
    in_specs, out_specs = _backward_blocks(plan, queries)
    # Where several programs share a key head, each has its own part of the sum.
    heads = groups * plan.key_heads
    exact = jnp.float32 if heads > inputs.key.shape[2] else query.dtype
    outputs: list[tuple[Any, ...]] = [
        (out_specs[0], (batch, keys, heads * plan.k), exact),
        (out_specs[1], (batch, keys, heads * plan.v), exact),
    ]
    if one_tile:
        outputs.append((out_specs[2], query.shape, query.dtype))
    d_key, d_value, *d_query = pallas_call(
        functools.partial(tiles.attention_backward, plan=plan),
        arrays,
        device=device,
        grid=(batch, groups, keys // plan.keys),
        in_specs=in_specs,
        outputs=outputs,
        **_work(plan, arrays, products_of_k=3 if one_tile else 2, products_of_v=2),
    )
    if not one_tile:
        in_specs, out_specs = _query_backward_blocks(plan, keys)
        (*d_query,) = pallas_call(
            functools.partial(tiles.attention_query_backward, plan=plan),
            arrays,
            device=device,
            grid=(batch, groups, queries // plan.queries),
            in_specs=in_specs,
            outputs=[(out_specs[0], query.shape, query.dtype)],
            **_work(plan, arrays, products_of_k=2, products_of_v=1),
        )

    def gradient(of, like, features):
        """[B, S', heads F'] -> [B, S, G, F]."""
        _, length, key_heads, width = like.shape
        of = of.reshape(batch, of.shape[1], key_heads, -1, features)[:, :length, ..., :width]
        return of[:, :, :, 0] if of.shape[3] == 1 else of.sum(axis=3).astype(like.dtype)

    return (
        gradient(d_query[0], inputs.query, plan.k),
        gradient(d_key, inputs.key, plan.k),
        gradient(d_value, inputs.value, plan.v),
    )


def _lay_out(plan: Plan, inputs: Inputs) -> tuple[jax.Array, ...]:
    """Whole tiles, and the heads side by side.

    words [B, groups, 1, heads], offsets [B, 1, 1], segments [B, 1, T'] and [B, S', 1],
    query [B, T', H K'], key [B, S', G K'], value [B, S', G V'].
    """
    batch, queries = inputs.query.shape[:2]
    keys = inputs.key.shape[1]
    query, key, value, query_segments, key_segments, offsets, words = inputs.complete()
    return (
        words.reshape(batch, -1, 1, plan.heads),
        offsets[:, None, None],
        jnp.pad(query_segments, ((0, 0), (0, -queries % plan.queries)))[:, None, :],
        jnp.pad(key_segments, ((0, 0), (0, -keys % plan.keys)))[:, :, None],
        _pad(query, plan.queries, plan.k),
        _pad(key, plan.keys, plan.k),
        _pad(value, plan.keys, plan.v),
    )


def _pad(array: Float[Array, "B T H F"], length: int, features: int):
    """Whole tiles of `length` positions, heads of `features` side by side: [B, T', H F']."""
    widths = (0, -array.shape[1] % length), (0, 0), (0, features - array.shape[3])
    padded = jnp.pad(array, ((0, 0), *widths))
    return padded.reshape(*padded.shape[:2], -1)


_LARGE, _SMALL = (
    160 * 1024,
    99 * 1024,
)  # bytes of shared memory: A100, H100, B200; L4, RTX 3090 to 5090


def _plan(inputs: Inputs, options: Options, device: Device) -> Plan:
    """Tiles as large as a device holds: a TPU's are whole rows of 128 lanes, a GPU's fit its registers.

    Where one tile takes all keys, a backward pass is two products shorter.
    """
    _, queries, heads, k = inputs.query.shape
    _, keys, key_heads, v = inputs.value.shape
    on_tpu, exact = device.platform == "tpu", inputs.query.dtype == jnp.float32
    if on_tpu:
        most_queries, most_keys = 128, 256 if keys <= 256 else 128
    else:
        most_queries, most_keys = _gpu_tile(exact, max(k, v), device)
    # Named, lest `jax_default_matmul_precision` ask of 16-bit inputs what the hardware has not got.
    precision: Any = lax.Precision.DEFAULT
    if exact:  # three passes over the halves of a float32 are what a GPU's tensor cores offer
        gpu = device.platform == "gpu"
        precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if gpu else lax.Precision.HIGHEST
    together = _heads_together(key_heads, k, v) if on_tpu else 1
    return Plan(
        queries=_tile(queries, most_queries),
        keys=_tile(keys, most_keys),
        heads=together * heads // key_heads if on_tpu else 1,
        key_heads=together,
        sharing=heads // key_heads,
        k=k if on_tpu else max(16, power_of_two(k)),
        v=v if on_tpu else max(16, power_of_two(v)),
        causal=options.causal,
        offset=inputs.query_offset is not None,
        rate=options.dropout_rate,
        precision=precision,
    )


def _gpu_tile(exact: bool, features: int, device: Device) -> tuple[int, int]:
    """The largest tiles of queries and keys with which all three kernels fit a GPU; see `make aot`.

    In float32 smaller ones than fit, since larger ones spill a kilobyte a thread.
    """
    if exact:
        return (32, 32) if features <= 64 else (16, 16)
    small = device.platform == "gpu" and device.shared_memory < _LARGE
    return 32 if small and features > 64 else 64, 128


def _tile(length: int, most: int) -> int:
    """The size of a sequence's tiles: a power of two from 16 to `most`."""
    return min(most, max(16, power_of_two(length)))


def _heads_together(heads: int, k: int, v: int) -> int:
    """The fewest heads whose vectors fill whole rows of 128 lanes; all, if no number does."""
    for number in range(1, heads):
        if heads % number == 0 and number * k % 128 == 0 and number * v % 128 == 0:
            return number
    return heads


def _work(plan, arrays, *, products_of_k, products_of_v):
    """How much a kernel computes, and with how many warps: 8 where a tile overfills 4's registers."""
    query, key = arrays[4], arrays[5]
    scores = math.prod(query.shape) // plan.k * key.shape[1]
    share = 2 if plan.causal else 1  # of the scores, half are never made
    features = products_of_k * plan.k + products_of_v * plan.v
    return {
        "flops": 2 * scores * features // share,
        "transcendentals": scores // share,
        "warps": 8 if plan.keys >= 128 else 4,
    }


# Which part of each array a program (row b, group of heads g, tile i) has: all positions, or the tile's.
# First those of the inputs, then of the outputs.


def _forward_blocks(plan, keys):
    own, whole = plan.queries, keys
    return [
        *_per_row(plan),
        _row(own, tiled=True),
        _column(whole),
        _vectors(plan.heads * plan.k, own, tiled=True),
        _key_vectors(plan, plan.k, whole),
        _key_vectors(plan, plan.v, whole),
    ], [_vectors(plan.heads * plan.v, own, tiled=True), _row_of_heads(plan, own, tiled=True)]


def _backward_blocks(plan, queries):
    own, whole = plan.keys, queries
    return [
        *_per_row(plan),
        _row(whole),
        _column(own, tiled=True),
        _vectors(plan.heads * plan.k, whole),
        _key_vectors(plan, plan.k, own, tiled=True),
        _key_vectors(plan, plan.v, own, tiled=True),
        _row_of_heads(plan, whole),
        _row_of_heads(plan, whole),
        _vectors(plan.heads * plan.v, whole),
    ], [
        _vectors(plan.key_heads * plan.k, own, tiled=True),
        _vectors(plan.key_heads * plan.v, own, tiled=True),
        _vectors(plan.heads * plan.k, whole),
    ]


def _query_backward_blocks(plan, keys):
    own, whole = plan.queries, keys
    return [
        *_per_row(plan),
        _row(own, tiled=True),
        _column(whole),
        _vectors(plan.heads * plan.k, own, tiled=True),
        _key_vectors(plan, plan.k, whole),
        _key_vectors(plan, plan.v, whole),
        _row_of_heads(plan, own, tiled=True),
        _row_of_heads(plan, own, tiled=True),
        _vectors(plan.heads * plan.v, own, tiled=True),
    ], [_vectors(plan.heads * plan.k, own, tiled=True)]


def _per_row(plan):
    """Of the words and the offset of a row; a TPU's loops go as far as its scalar memory says."""
    return (
        pl.BlockSpec((None, None, 1, plan.heads), lambda b, g, i: (b, g, 0, 0)),
        pl.BlockSpec((None, 1, 1), lambda b, g, i: (b, 0, 0), memory_space=tpu.SMEM),
    )


def _row(length, tiled=False):
    return pl.BlockSpec((None, 1, length), lambda b, g, i: (b, 0, i if tiled else 0))


def _column(length, tiled=False):
    return pl.BlockSpec((None, length, 1), lambda b, g, i: (b, i if tiled else 0, 0))


def _vectors(columns, length, tiled=False):
    return pl.BlockSpec((None, length, columns), lambda b, g, i: (b, i if tiled else 0, g))


def _key_vectors(plan, features, length, tiled=False):
    """Of the key heads that the program's query heads look at."""
    share = plan.sharing * plan.key_heads // plan.heads  # programs that share a block
    block = (None, length, plan.key_heads * features)
    if share == 1:
        return pl.BlockSpec(block, lambda b, g, i: (b, i if tiled else 0, g))
    return pl.BlockSpec(block, lambda b, g, i: (b, i if tiled else 0, lax.div(g, jnp.int32(share))))


def _row_of_heads(plan, length, tiled=False):
    block = (None, None, plan.heads, length)
    return pl.BlockSpec(block, lambda b, g, i: (b, g, 0, i if tiled else 0))


def _vmem(plan: Plan, inputs: Inputs) -> int:
    """Bytes of a TPU's vector memory that the hungriest of the three kernels needs.

    The pipeline has two buffers for each block, whose columns are padded to 128 lanes and its rows to 8;
    a megabyte is for registers that spill.
    """
    itemsize = inputs.query.dtype.itemsize
    queries = -(-inputs.query.shape[1] // plan.queries) * plan.queries
    keys = -(-inputs.key.shape[1] // plan.keys) * plan.keys

    def size(spec: pl.BlockSpec) -> int:
        *_, rows, columns = (of for of in spec.block_shape or () if isinstance(of, int))
        vectors = len(spec.block_shape or ()) == 3 and 1 not in (rows, columns)
        rows += -rows % 8 if rows > 1 else 0
        return rows * (columns + -columns % 128) * (itemsize if vectors else 4)

    ins, outs = _backward_blocks(plan, queries)
    kernels = (
        _forward_blocks(plan, keys),
        (ins, outs if keys == plan.keys else outs[:2]),
        _query_backward_blocks(plan, keys),
    )
    return max(2 * sum(map(size, [*ins, *outs])) for ins, outs in kernels) + 2**20
