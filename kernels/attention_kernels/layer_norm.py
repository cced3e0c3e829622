# SPDX-License-Identifier: Apache-2.0
"""The end of every sublayer in one pass: LayerNorm(x + Dropout(Sublayer(x))), sections 3.1 and 5.4.

It moves memory and computes next to nothing. Written out, XLA keeps the sum, its statistics and the
mask for the backward pass; the kernel reads the two inputs again and makes everything anew.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, Integer

from attention_kernels.backends import pallas_call, platform, power_of_two
from attention_kernels.dropout import dropout_bits, fold, keep_mask

_POSITIONS = 32  # of a program; fewer programs make fewer partial sums for scale and bias


def dropout_add_layer_norm(
    x: Float[Array, "B T D"],
    residual: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    *,
    rate: float = 0.0,
    seed: Integer[Array, ""] | None = None,
    row_ids: Int[Array, " B"] | None = None,
    eps: float = 1e-6,
    implementation: str | None = None,
) -> Float[Array, "B T D"]:
    """scale * normalise(residual + dropout(x)) + bias, over D; computed in float32.

    Args:
      x: a sublayer's output, of which dropout zeroes entries.
      residual: what the sublayer read. The output has its dtype.
      scale, bias: of the normalisation.
      rate: the share that is dropped; needs `seed`.
      seed: an integer scalar, may be traced.
      row_ids: each row's number in the global batch (default: 0, 1, ...); see `dropout.py`.
      eps: added to the variance.
      implementation: "xla", "pallas", or None: the best one here.

    Raises:
      ValueError: the implementation is unknown, or dropout is asked for without a seed.
    """
    implementation = implementation or choose_layer_norm(rate)
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r}; known are {', '.join(_IMPLEMENTATIONS)} and None"
        )
    if rate > 0.0 and seed is None:
        raise ValueError("rate > 0 needs a seed")
    seed = jnp.uint32(0) if seed is None else seed
    row_ids = jnp.arange(x.shape[0]) if row_ids is None else row_ids
    return _IMPLEMENTATIONS[implementation](x, residual, scale, bias, rate, seed, row_ids, eps)


def choose_layer_norm(rate: float) -> str:
    """The best implementation here: without dropout XLA does as well as the kernel."""
    return "xla" if platform() == "cpu" or rate == 0.0 else "pallas"


def _xla(x, residual, scale, bias, rate, seed, row_ids, eps):
    x = x.astype(jnp.float32)
    if rate > 0.0:
        bits = dropout_bits(seed, row_ids, 1, *x.shape[1:])[:, 0]
        x = jnp.where(keep_mask(bits, rate), x / (1.0 - rate), 0.0)
    normal, _ = _normalise(residual.astype(jnp.float32) + x, eps)
    return (scale * normal + bias).astype(residual.dtype)


def _pallas(x, residual, scale, bias, rate, seed, row_ids, eps):
    batch, length, features = x.shape
    # One word a position: what is left of dropout_bits is the feature.
    words = fold(fold(seed.astype(jnp.uint32), row_ids), jnp.zeros((), jnp.int32))[:, None]
    words = fold(words, jnp.arange(length)).reshape(-1, 1)
    positions = batch * length
    # Triton wants powers of two: columns of padding that the statistics leave out.
    wide = power_of_two(features) if platform() == "gpu" else features
    padding = ((0, -positions % _POSITIONS), (0, wide - features))

    def flat(array):
        return jnp.pad(array.reshape(-1, features), padding)

    out = _flat(
        (rate, eps, features, _rows(wide)),
        jnp.pad(words, (padding[0], (0, 0))),
        flat(x),
        flat(residual),
        *(jnp.pad(array, padding[1])[None].astype(jnp.float32) for array in (scale, bias)),
    )
    return out[:positions, :features].reshape(residual.shape)


_IMPLEMENTATIONS = {"xla": _xla, "pallas": _pallas}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flat(constants, words, x, residual, scale, bias):
    """Of words [N, 1], x and residual [N, D], scale and bias [1, D]."""
    return _forward(constants, words, x, residual, scale, bias)[0]


def _forward(constants, words, x, residual, scale, bias):
    block, vector = _block(x), _vector(x)
    (out,) = pallas_call(
        functools.partial(layer_norm_forward, constants=constants),
        (words, x, residual, scale, bias),
        grid=(x.shape[0] // _POSITIONS,),
        in_specs=[_block(words), block, block, vector, vector],
        outputs=[(block, residual.shape, residual.dtype)],
        flops=10 * x.size,
        warps=_warps(x),
    )
    return out, (words, x, residual, scale, bias)


def _backward(constants, residuals, d_out):
    words, x, residual, scale, _ = residuals
    programs = x.shape[0] // _POSITIONS
    block, vector = _block(x), _vector(x)
    partial = pl.BlockSpec((None, 1, x.shape[1]), lambda i: (i, 0, 0))
    sums = partial, (programs, 1, x.shape[1]), jnp.float32
    d_x, d_residual, d_scale, d_bias = pallas_call(
        functools.partial(layer_norm_backward, constants=constants),
        (words, x, residual, scale, d_out),
        grid=(programs,),
        in_specs=[_block(words), block, block, vector, block],
        outputs=[(block, x.shape, x.dtype), (block, residual.shape, residual.dtype), sums, sums],
        flops=20 * x.size,
        warps=_warps(x),
    )
    return None, d_x, d_residual, d_scale.sum(axis=0), d_bias.sum(axis=0)


_flat.defvjp(_forward, _backward)


def _block(array):
    return pl.BlockSpec((_POSITIONS, array.shape[1]), lambda i: (i, 0))


def _rows(features):
    """How many positions a program has in registers at a time."""
    return 8 if platform() != "gpu" or features <= 512 else max(1, 4096 // features)


def _warps(x):
    """Of a program on a GPU: as many as have registers for those positions; see `make aot`."""
    return 4 if x.shape[1] <= 512 else 8


def _vector(array):
    return pl.BlockSpec((1, array.shape[1]), lambda i: (0, 0))


def layer_norm_forward(words, x, residual, scale, bias, out, *, constants):
    """One block of positions: words [R, 1], x, residual and out [R, D], scale and bias [1, D]."""
    _, _, _, size = constants

    def step(number, carry):
        rows = pl.ds(pl.multiple_of(number * size, size), size)
        normal, *_ = _tile(constants, words[rows, :], x[rows, :], residual[rows, :])
        out[rows, :] = (scale[...] * normal + bias[...]).astype(out.dtype)
        return carry

    lax.fori_loop(0, _POSITIONS // size, step, 0)


def layer_norm_backward(
    words, x, residual, scale, d_out, d_x, d_residual, d_scale, d_bias, *, constants
):
    """One block of positions; d_scale and d_bias [1, D] are this block's share of the sums."""
    _, _, features, size = constants

    def step(number, carry):
        rows = pl.ds(pl.multiple_of(number * size, size), size)
        normal, deviation, keep = _tile(constants, words[rows, :], x[rows, :], residual[rows, :])
        d_o = d_out[rows, :].astype(jnp.float32)
        d_normal = d_o * scale[...]
        mean = d_normal.sum(axis=1, keepdims=True) / features
        slope = (d_normal * normal).sum(axis=1, keepdims=True) / features
        d_sum = (d_normal - mean - normal * slope) / deviation
        d_residual[rows, :] = d_sum.astype(d_residual.dtype)
        d_x[rows, :] = (d_sum * keep).astype(d_x.dtype)
        return (
            carry[0] + (d_o * normal).sum(axis=0, keepdims=True),
            carry[1] + d_o.sum(axis=0, keepdims=True),
        )

    zeros = jnp.zeros((1, x.shape[1]), jnp.float32)
    d_scale[...], d_bias[...] = lax.fori_loop(0, _POSITIONS // size, step, (zeros, zeros))


def _tile(constants, words, x, residual):
    """Of a few positions: the normalised sum, its standard deviation, and dropout's factors."""
    rate, eps, features, _ = constants
    columns = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    keep = jnp.ones(x.shape, jnp.float32)
    if rate > 0.0:
        keep = jnp.where(keep_mask(fold(words, columns), rate), 1.0 / (1.0 - rate), 0.0)
    total = residual.astype(jnp.float32) + keep * x.astype(jnp.float32)
    inside = columns < features
    return *_normalise(total, eps, inside, features), keep


def _normalise(total, eps, inside=True, features=None):
    """(total - mean) / deviation and the deviation, over the last axis where `inside` holds."""
    features = features or total.shape[-1]
    mean = jnp.where(inside, total, 0.0).sum(axis=-1, keepdims=True) / features
    centred = jnp.where(inside, total - mean, 0.0)
    variance = (centred * centred).sum(axis=-1, keepdims=True) / features
    deviation = jnp.sqrt(variance + eps)
    return centred / deviation, deviation
