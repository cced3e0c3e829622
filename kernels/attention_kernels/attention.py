# SPDX-License-Identifier: Apache-2.0
"""The one door to attention: same arguments, same dropped entries, whichever implementation runs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from attention_kernels import pallas_attention, reference
from attention_kernels.backends import platform
from attention_kernels.dropout import dropout_bits, keep_mask


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    *,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_seed: Integer[Array, ""] | None = None,
    row_ids: Int[Array, " B"] | None = None,
    head_offset: Int[Array, ""] | int = 0,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H V"]:
    """Scaled dot-product attention (section 3.2.1, equation 1) with segments and dropout.

    Args:
      query, key, value: any float dtype; the output has the query's.
      query_segments, key_segments: a query sees the keys of its own segment only; segment 0 is
        padding, whose output is zero. None: everything is one segment.
      causal: a query sees no key to its right.
      dropout_rate: the share of attention weights that is dropped; needs `dropout_seed`.
      dropout_seed: an integer scalar, may be traced.
      row_ids: each row's number in the global batch (default: 0, 1, ...); see `dropout.py`.
      head_offset: the number of the first head given, where a mesh splits the heads.
      scale: of the scores; default 1 / sqrt(K).
      implementation: "reference" (float32, the oracle), "xla" (products in the inputs' dtype,
        softmax in float32), "pallas" (a kernel that never holds all weights; TPU, GPU through
        Triton, interpreted on a CPU), "mosaic_gpu" (the same for Hopper's tensor cores), or None:
        the best one here.

    Raises:
      ValueError: the implementation is unknown, or dropout is asked for without a seed.
      NotImplementedError: the implementation that is asked for cannot serve these inputs.
    """
    implementation = implementation or choose_attention(query, key, value)
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r}; known are {', '.join(_IMPLEMENTATIONS)} and None"
        )
    if dropout_rate > 0.0 and dropout_seed is None:
        raise ValueError("dropout_rate > 0 needs a dropout_seed")
    if row_ids is None:
        row_ids = jnp.arange(query.shape[0])
    return _IMPLEMENTATIONS[implementation](
        query,
        key,
        value,
        query_segments=query_segments,
        key_segments=key_segments,
        causal=causal,
        dropout_rate=dropout_rate,
        dropout_seed=dropout_seed,
        row_ids=row_ids,
        head_offset=head_offset,
        scale=scale,
    )


def choose_attention(
    query: Float[Array, "B T H K"], key: Float[Array, "B S H K"], value: Float[Array, "B S H V"]
) -> str:
    """The best implementation here: the kernel, but on a CPU and for decoding's single queries XLA.

    "mosaic_gpu" is not chosen: nobody has timed it on a GPU yet. It is there for when the Triton
    backend of "pallas" leaves JAX, and for whoever asks for it by name.
    """
    if platform() == "cpu" or query.shape[1] == 1:
        return "xla"
    return "xla" if pallas_attention.unsupported(query, key, value) else "pallas"


def _xla(
    query,
    key,
    value,
    *,
    query_segments,
    key_segments,
    causal,
    dropout_rate,
    dropout_seed,
    row_ids,
    head_offset,
    scale,
):
    """Two matrix products and a softmax, left to XLA."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = reference.visible(query.shape[1], key.shape[1], query_segments, key_segments, causal)
    query = query * scale
    # For one query a matrix product would have XLA transpose all keys and values, which in decoding
    # are the whole cache: 62 ms a step became 43 for a small model on a CPU.
    single = query.shape[1] == 1
    if single:
        scores = jnp.moveaxis(jnp.sum(query * key, axis=-1, dtype=jnp.float32), 1, 2)[:, :, None]
    else:
        scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
    # Finite, so that a query without keys gives no NaN; its output is cleared below.
    lowest = jnp.finfo(jnp.float32).min
    weights = jax.nn.softmax(jnp.where(mask, scores, lowest), axis=-1)
    if dropout_rate > 0.0:
        _, heads, queries, keys = weights.shape
        bits = dropout_bits(dropout_seed, row_ids, heads, queries, keys, head_offset)
        keep = keep_mask(bits, dropout_rate)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    weights = jnp.where(mask, weights, 0.0).astype(value.dtype)
    if single:
        return jnp.sum(jnp.moveaxis(weights, 3, 1) * value, axis=1, keepdims=True)
    return jnp.einsum("bhts,bshv->bthv", weights, value)


def _mosaic_gpu(query, key, value, **options):
    """See `mosaic_attention.py`, which is imported where it is asked for: JAX may lack what it needs."""
    from attention_kernels import mosaic_attention

    return mosaic_attention.attention(query, key, value, **options)


_IMPLEMENTATIONS = {
    "reference": reference.attention,
    "xla": _xla,
    "pallas": pallas_attention.attention,
    "mosaic_gpu": _mosaic_gpu,
}
