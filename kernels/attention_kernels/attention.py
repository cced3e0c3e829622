# SPDX-License-Identifier: Apache-2.0
"""The one door to attention: same arguments, same dropped entries, whichever implementation runs."""

import dataclasses
import functools
import importlib
import math
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention_kernels import backends, reference, xla
from attention_kernels.backends import Device
from attention_kernels.checks import check_rate, check_static
from attention_kernels.options import Arguments, Inputs, Options, dropout_words, make_inputs

IN_XLA = {
    "reference": reference.attention,
    "xla": xla.attention,
    "xla_chunked": xla.attention_in_blocks,
}
# The module of a kernel has `unsupported`, `forward` and `backward`. It is imported where it is used: JAX
# may lack what it needs.
_KERNELS = {"pallas": "pallas_attention", "mosaic_gpu": "mosaic_attention"}
IMPLEMENTATIONS = (*IN_XLA, *_KERNELS)
# Weights of a head that XLA makes at once; where there are more, it makes them in blocks.
_WHOLE = 2**22


@overload
def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G V"],
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Arguments],
) -> Float[Array, "B T H V"]: ...


@overload
def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G V"],
    *,
    return_lse: Literal[True],
    **options: Unpack[Arguments],
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]: ...


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    query_segments: Any = None,
    key_segments: Any = None,
    causal: Any = False,
    query_offset: Any = None,
    dropout_rate: Any = 0.0,
    dropout_seed: Any = None,
    row_ids: Any = None,
    head_offset: Any = 0,
    scale: Any = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """Scaled dot-product attention (section 3.2.1, equation 1) with segments and dropout.

    Args:
      query [B, T, H, K], key [B, S, G, K], value [B, S, G, V]: of any float dtypes; the output has the
        query's. Inputs of several dtypes are computed in float32. G divides H: query head h has key
        head h // (H / G); G = 1 is multi-query attention.
      query_segments [B, T], key_segments [B, S]: a query sees the keys of its own segment only;
        segment 0 is padding, whose output is zero. A side that is not given belongs to every segment,
        so that `key_segments` alone hides padding among the keys.
      causal: a query sees no key to its right; the first query stands where the first key does, also
        where T and S differ (top left), unless `query_offset` says otherwise.
      query_offset [] or [B]: the position of a row's first query among the keys, for queries over a
        cache: S - T where they are the last. May be traced. Dropout counts queries from there, too.
      dropout_rate: the share of attention weights that is dropped, from 0 to 1; needs `dropout_seed`.
      dropout_seed: an integer scalar, may be traced, or a `jax.random.key`. One seed is one mask:
        `fold_in` makes those of a step and a layer.
      row_ids [B]: each row's number in the global batch (default: 0, 1, ...); see `dropout.py`.
      head_offset: the number of the first head given, where a mesh splits the heads.
      scale: of the scores; default 1 / sqrt(K). May be traced, and learned.
      return_lse: return (out, lse [B, T, H]), too: the logarithm of the sum of each query's exponentiated
        scores, before dropout, float32; -inf for a query that sees no key. What several calls make of
        parts of the keys can be put together with it. Differentiable as the output is.
      implementation: "reference" (float32, the oracle), "xla" (products in the inputs' dtype,
        softmax in float32), "xla_chunked" (the same in blocks of queries, with linear memory), "pallas"
        (a kernel that never holds all weights; TPU, GPU through Triton, interpreted on a CPU),
        "mosaic_gpu" (the same for Hopper's tensor cores), or None: the best one here.

    Returns:
      out [B, T, H, V], or (out, lse).

    Raises:
      TypeError, ValueError: the arguments do not fit each other, the implementation is unknown, or
        dropout is asked for without a seed.
      NotImplementedError: the implementation that is asked for cannot serve these inputs.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r}; known are {', '.join(IMPLEMENTATIONS)} and None"
        )
    check_static(causal, "causal")
    options = Options(bool(causal), check_rate(dropout_rate, "dropout_rate"), bool(return_lse))
    inputs = make_inputs(
        query,
        key,
        value,
        query_segments=query_segments,
        key_segments=key_segments,
        query_offset=query_offset,
        scale=scale,
        exact=implementation == "reference",
    )
    batch, _, heads, _ = query.shape
    rate = options.dropout_rate
    words = dropout_words(rate, dropout_seed, row_ids, batch, heads, head_offset)
    out, lse = _attend(inputs._replace(words=words), options, implementation)
    out = out.astype(query.dtype)
    if lse is None or not return_lse:
        return out
    return out, jnp.swapaxes(lse, 1, 2).astype(jnp.float32)


def attention_weights(
    query: Any,
    key: Any,
    *,
    query_segments: Any = None,
    key_segments: Any = None,
    causal: bool = False,
    query_offset: Any = None,
    scale: Any = None,
) -> Float[Array, "B H T S"]:
    """softmax(Q K^T / sqrt(d_k)), in float32, for pictures; the arguments are those of `attention`.

    A query that sees no key has zeros.
    """
    inputs = make_inputs(
        query,
        key,
        key,
        query_segments=query_segments,
        key_segments=key_segments,
        query_offset=query_offset,
        scale=scale,
        exact=True,
    )
    if key.shape[1] == 0:
        return jnp.zeros((query.shape[0], query.shape[2], query.shape[1], 0), inputs.query.dtype)
    return reference.weights_and_lse(inputs, causal)[0]


def choose_attention(query: Any, key: Any, value: Any) -> str:
    """The best implementation for these inputs on the device that is being compiled for.

    query [B, T, H, K], key [B, S, G, K] and value [B, S, G, V] may be abstract (`jax.ShapeDtypeStruct`).
    The kernel, where there is one for the device and its memories hold the tiles; on a CPU, and where
    the kernel cannot serve, XLA, in blocks where the weights of a head are many. "mosaic_gpu" is not
    chosen: nobody has timed it on a GPU yet. It is there for when the Triton backend of "pallas" leaves
    JAX, and for whoever asks for it by name.
    """
    inputs = jax.eval_shape(make_inputs, query, key, value)
    return _choose(inputs, backends.device())


def _choose(inputs: Inputs, device: Device) -> str:
    if device.platform in ("gpu", "tpu"):
        reason = _kernel("pallas").unsupported(inputs, device)
        if reason is None:
            return "pallas"
        backends.log_once(f"attention on {device.kind} is left to XLA: {reason}")
    return _in_xla(inputs)


def _attend(
    inputs: Inputs, options: Options, implementation: str | None
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H T"] | None]:
    """Equation 1 by the implementation, or by the best one."""
    batch, queries, heads, _ = inputs.query.shape
    if 0 in inputs.key.shape[1:3]:  # nothing to see
        out = jnp.zeros((batch, queries, heads, inputs.value.shape[3]), inputs.query.dtype)
        return out, jnp.full((batch, heads, queries), -jnp.inf)
    if 0 in (*inputs.query.shape, *inputs.value.shape):
        return xla.attention(inputs, options)
    device = backends.device()
    chosen = implementation or _choose(inputs, device)
    if chosen in IN_XLA:
        return IN_XLA[chosen](inputs, options)
    reason = _kernel(chosen).unsupported(inputs, device)
    if reason:
        raise NotImplementedError(f"implementation={chosen!r} cannot serve {reason}")
    return _run_kernel(_Call(chosen, options, device), backends.vary_together(inputs))


@dataclasses.dataclass(frozen=True)
class _Call:
    """A kernel, what it is compiled for, and the device that it was planned for."""

    name: str
    options: Options
    device: Device


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_kernel(call: _Call, inputs: Inputs) -> tuple[Any, Any]:
    """(out [B, T, H, V], lse [B, H, T]) of a kernel, with the gradients of another."""
    return _forward(call, inputs)[0]


def _forward(call, inputs):
    forward = functools.partial(
        _kernel(call.name).forward, options=call.options, device=call.device
    )
    outputs = backends.on_platform(call.device, forward, _xla_forward(call, inputs), inputs)
    return outputs, (inputs, *outputs)


def _backward(call, residuals, d_outputs):
    backward = functools.partial(
        _kernel(call.name).backward, options=call.options, device=call.device
    )

    def in_xla(inputs, out, lse, *d_outputs):
        forward = _xla_forward(call, inputs)
        vectors, others = inputs[:3], inputs[3:]
        return jax.vjp(lambda *vectors: forward(Inputs(*vectors, *others)), *vectors)[1](d_outputs)

    gradients = backends.on_platform(call.device, backward, in_xla, *residuals, *d_outputs)
    d_query, d_key, d_value = gradients
    return (Inputs(d_query, d_key, d_value, None, None, None),)


_run_kernel.defvjp(_forward, _backward)


def _xla_forward(call, inputs):
    """What XLA makes of it where the code is lowered for another platform than it was traced for."""
    options = dataclasses.replace(call.options, lse=True)
    return functools.partial(IN_XLA[_in_xla(inputs)], options=options)


def _kernel(name: str) -> Any:
    return importlib.import_module(f"attention_kernels.{_KERNELS[name]}")


def _in_xla(inputs: Inputs) -> str:
    lengths = inputs.query.shape[1], inputs.key.shape[1]
    known = all(isinstance(length, int) for length in lengths)  # not so in jax.export
    return "xla_chunked" if known and math.prod(lengths) > _WHOLE else "xla"
