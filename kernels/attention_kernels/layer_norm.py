# SPDX-License-Identifier: Apache-2.0
"""The end of every sublayer in one pass: LayerNorm(x + Dropout(Sublayer(x))), sections 3.1 and 5.4.

It moves memory and computes next to nothing. Written out, XLA keeps the sum, its statistics and the
mask for the backward pass; the kernel reads the two inputs again and makes everything anew.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, UInt32

from attention_kernels import backends
from attention_kernels.backends import Device, pallas_call, power_of_two
from attention_kernels.checks import check_floats, check_rate, check_static
from attention_kernels.dropout import checked_words, fold, keep_mask, keep_scale
from attention_kernels.options import wide

_POSITIONS = 32  # of a program; fewer programs make fewer partial sums for scale and bias
_IMPLEMENTATIONS = ("xla", "pallas")


def dropout_add_layer_norm(
    x: Any,
    residual: Any,
    scale: Any,
    bias: Any,
    *,
    rate: Any = 0.0,
    seed: Any = None,
    row_ids: Any = None,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> Float[Array, "B T D"]:
    """scale * normalise(residual + dropout(x)) + bias, over D; computed in float32.

    Args:
      x [B, T, D]: a sublayer's output, of which dropout zeroes entries.
      residual [B, T, D]: what the sublayer read. The output has its dtype.
      scale, bias [D]: of the normalisation.
      rate: the share that is dropped, from 0 to 1; needs `seed`.
      seed: an integer scalar, may be traced, or a `jax.random.key`. One seed is one mask, and head 0 of
        `attention` has the same for the same seed: `fold_in` makes others.
      row_ids [B]: each row's number in the global batch (default: 0, 1, ...); see `dropout.py`.
      eps: added to the variance.
      implementation: "xla", "pallas", or None: the best one here.

    Raises:
      TypeError, ValueError: the arguments do not fit each other, the implementation is unknown, or
        dropout is asked for without a seed.
      NotImplementedError: the implementation that is asked for cannot serve these inputs.
    """
    if implementation not in (None, *_IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r}; known are {', '.join(_IMPLEMENTATIONS)} and None"
        )
    check_sublayer(x, residual, scale, bias)
    rate = check_rate(rate, "rate")
    check_static(eps, "eps")
    arrays = x, residual, scale, bias, _words(x, rate, seed, row_ids)
    device = backends.device()
    if 0 in x.shape:
        implementation = "xla"
    elif implementation is None:
        implementation = choose_layer_norm(residual, rate)
    call = _Call(rate, float(eps), x.shape[2], device)
    if implementation == "xla":
        return _in_xla(call, *arrays)
    reason = _unsupported(residual, device)
    if reason:
        raise NotImplementedError(f"implementation='pallas' cannot serve {reason}")
    return _run_kernel(call, *backends.vary_together(arrays))


def choose_layer_norm(residual: Any, rate: float) -> str:
    """The best implementation here: without dropout XLA does as well as the kernel."""
    device = backends.device()
    if rate == 0.0 or device.platform not in ("gpu", "tpu"):
        return "xla"
    reason = _unsupported(residual, device)
    if reason is None:
        return "pallas"
    backends.log_once(f"layer normalisation on {device.kind} is left to XLA: {reason}")
    return "xla"


def _unsupported(residual, device) -> str | None:
    dtypes = (jnp.float32, jnp.bfloat16, *((jnp.float16,) if device.platform != "tpu" else ()))
    if residual.dtype not in dtypes:
        return f"inputs of dtype {residual.dtype}"
    # The backward kernel has two buffers for each of five blocks, in float32 at most.
    if (
        device.vmem is not None
        and 2 * 5 * _POSITIONS * 4 * residual.shape[2] > device.vmem * 3 // 4
    ):
        return f"{residual.shape[2]} features, too many for the vector memory of a {device.kind}"
    return backends.unsupported(device, residual)


def check_sublayer(x: Any, residual: Any, scale: Any, bias: Any) -> None:
    """Raise a TypeError or ValueError unless they are [B, T, D], [B, T, D], [D] and [D], of floats."""
    check_floats({"x": x, "residual": residual}, rank=3)
    check_floats({"scale": scale, "bias": bias}, rank=1)
    if x.shape != residual.shape or not scale.shape == bias.shape == x.shape[2:]:
        raise ValueError(
            "x and residual need one shape [B, T, D], scale and bias [D]; they have shapes "
            f"{x.shape}, {residual.shape}, {scale.shape}, {bias.shape}"
        )


def _words(x, rate, seed, row_ids) -> UInt32[Array, "B T"]:
    """What is left of `dropout_bits` when the feature has been folded in."""
    rows, length, _ = x.shape
    if rate == 0.0:
        return jnp.zeros((rows, length), jnp.uint32)
    if seed is None:
        raise ValueError(f"rate={rate} needs a seed")
    return fold(checked_words(seed, row_ids, rows), jnp.arange(length, dtype=jnp.int32)[None])


@dataclasses.dataclass(frozen=True)
class _Call:
    """What a call is compiled for."""

    rate: float
    eps: float
    features: int  # D
    device: Device


def _in_xla(call, x, residual, scale, bias, words):
    dtype = wide(residual.dtype)
    x = x.astype(dtype)
    if call.rate > 0.0:
        features = jnp.arange(call.features, dtype=jnp.int32)[None, None]
        keep = keep_mask(fold(words[..., None], features), call.rate)
        x = jnp.where(keep, x * keep_scale(call.rate), 0.0)
    normal, _ = _normalise(residual.astype(dtype) + x, call.eps)
    scale, bias = (of.astype(dtype)[None, None] for of in (scale, bias))
    return (scale * normal + bias).astype(residual.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_kernel(call, x, residual, scale, bias, words):
    return _forward(call, x, residual, scale, bias, words)[0]


def _forward(call, *arrays):
    kernel, in_xla = functools.partial(_kernel_forward, call), functools.partial(_in_xla, call)
    return backends.on_platform(call.device, kernel, in_xla, *arrays), arrays


def _backward(call, arrays, d_out):
    def in_xla(d_out, x, residual, scale, bias, words):
        def forward(x, residual, scale, bias):
            return _in_xla(call, x, residual, scale, bias, words)

        return jax.vjp(forward, x, residual, scale, bias)[1](d_out)

    kernel = functools.partial(_kernel_backward, call)
    return *backends.on_platform(call.device, kernel, in_xla, d_out, *arrays), None


_run_kernel.defvjp(_forward, _backward)


def _kernel_forward(call, x, residual, scale, bias, words):
    words, x_rows, residual_rows, scale, bias = _flat(call, words, x, residual, scale, bias)
    block, vector = _block(x_rows), _vector(x_rows)
    (out,) = pallas_call(
        functools.partial(layer_norm_forward, call=call, size=_rows(call, x_rows)),
        (words, x_rows, residual_rows, scale, bias),
        device=call.device,
        grid=(x_rows.shape[0] // _POSITIONS,),
        in_specs=[_block(words), block, block, vector, vector],
        outputs=[(block, residual_rows.shape, residual.dtype)],
        flops=10 * x.size,
        warps=_warps(x_rows),
    )
    return _unflat(out, residual)


def _kernel_backward(call, d_out, x, residual, scale, bias, words):
    words, x_rows, residual_rows, scale_row, _, d_out = _flat(
        call, words, x, residual, scale, bias, d_out
    )
    programs = x_rows.shape[0] // _POSITIONS
    block, vector = _block(x_rows), _vector(x_rows)
    partial = pl.BlockSpec((None, 1, x_rows.shape[1]), lambda i: (i, 0, 0))
    sums = partial, (programs, 1, x_rows.shape[1]), jnp.float32
    d_x, d_residual, d_scale, d_bias = pallas_call(
        functools.partial(layer_norm_backward, call=call, size=_rows(call, x_rows)),
        (words, x_rows, residual_rows, scale_row, d_out),
        device=call.device,
        grid=(programs,),
        in_specs=[_block(words), block, block, vector, block],
        outputs=[
            (block, x_rows.shape, x.dtype),
            (block, x_rows.shape, residual.dtype),
            sums,
            sums,
        ],
        flops=20 * x.size,
        warps=_warps(x_rows),
    )
    d_scale, d_bias = (
        of.sum(axis=(0, 1))[: call.features].astype(like.dtype)
        for of, like in ((d_scale, scale), (d_bias, bias))
    )
    return _unflat(d_x, x), _unflat(d_residual, residual), d_scale, d_bias


def _flat(call, words, x, residual, scale, bias, *more):
    """Words [N, 1], x, residual and more [N, D'], scale and bias [1, D'], in whole blocks."""
    positions = words.size
    # Triton wants powers of two: columns of padding that the statistics leave out.
    columns_of_kernel = (
        power_of_two(call.features) if call.device.platform == "gpu" else call.features
    )
    rows, columns = (0, -positions % _POSITIONS), (0, columns_of_kernel - call.features)
    blocks = [
        jnp.pad(of.reshape(positions, call.features), (rows, columns))
        for of in (x, residual, *more)
    ]
    vectors = [jnp.pad(of.astype(jnp.float32), (columns,))[None] for of in (scale, bias)]
    words = jnp.pad(words.reshape(positions, 1), (rows, (0, 0)))
    return words, *blocks[:2], *vectors, *blocks[2:]


def _unflat(rows, like):
    """[N, D'] -> [B, T, D]."""
    batch, length, features = like.shape
    return rows[: batch * length, :features].reshape(like.shape)


def _block(array):
    return pl.BlockSpec((_POSITIONS, array.shape[1]), lambda i: (i, 0))


def _rows(call, x):
    """How many positions a program has in registers at a time."""
    features = x.shape[1]
    return 8 if call.device.platform != "gpu" or features <= 512 else max(1, 4096 // features)


def _warps(x):
    """Of a program on a GPU: as many as have registers for those positions; see `make aot`."""
    return 4 if x.shape[1] <= 512 else 8


def _vector(array):
    return pl.BlockSpec((1, array.shape[1]), lambda i: (0, 0))


def layer_norm_forward(words, x, residual, scale, bias, out, *, call, size):
    """One block of positions: words [R, 1], x, residual and out [R, D], scale and bias [1, D]."""

    def step(number, carry):
        rows = pl.ds(pl.multiple_of(number * size, size), size)
        normal, *_ = _tile(call, words[rows, :], x[rows, :], residual[rows, :])
        out[rows, :] = (scale[...] * normal + bias[...]).astype(out.dtype)
        return carry

    lax.fori_loop(jnp.int32(0), jnp.int32(_POSITIONS // size), step, jnp.int32(0))


def layer_norm_backward(
    words, x, residual, scale, d_out, d_x, d_residual, d_scale, d_bias, *, call, size
):
    """One block of positions; d_scale and d_bias [1, D] are this block's share of the sums."""

    def step(number, carry):
        rows = pl.ds(pl.multiple_of(number * size, size), size)
        normal, deviation, keep = _tile(call, words[rows, :], x[rows, :], residual[rows, :])
        d_o = d_out[rows, :].astype(jnp.float32)
        d_normal = d_o * scale[...]
        mean = d_normal.sum(axis=1, keepdims=True) / call.features
        slope = (d_normal * normal).sum(axis=1, keepdims=True) / call.features
        d_sum = (d_normal - mean - normal * slope) / deviation
        d_residual[rows, :] = d_sum.astype(d_residual.dtype)
        d_x[rows, :] = (d_sum * keep).astype(d_x.dtype)
        return (
            carry[0] + (d_o * normal).sum(axis=0, keepdims=True),
            carry[1] + d_o.sum(axis=0, keepdims=True),
        )

    zeros = jnp.zeros((1, x.shape[1]), jnp.float32)
    steps = jnp.int32(0), jnp.int32(_POSITIONS // size)
    d_scale[...], d_bias[...] = lax.fori_loop(*steps, step, (zeros, zeros))


def _tile(call, words, x, residual):
    """Of a few positions: the normalised sum, its standard deviation, and dropout's factors."""
    columns = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    keep = jnp.ones(x.shape, jnp.float32)
    if call.rate > 0.0:
        keep = jnp.where(keep_mask(fold(words, columns), call.rate), keep_scale(call.rate), 0.0)
    total = residual.astype(jnp.float32) + keep * x.astype(jnp.float32)
    inside = columns < call.features
    return *_normalise(total, call.eps, inside, call.features), keep


def _normalise(total, eps, inside=True, features=None):
    """(total - mean) / deviation and the deviation, over the last axis where `inside` holds."""
    features = features or total.shape[-1]
    mean = jnp.where(inside, total, 0.0).sum(axis=-1, keepdims=True) / features
    centred = jnp.where(inside, total - mean, 0.0)
    variance = (centred * centred).sum(axis=-1, keepdims=True) / features
    deviation = jnp.sqrt(variance + eps)
    return centred / deviation, deviation
