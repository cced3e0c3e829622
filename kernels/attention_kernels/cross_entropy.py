# SPDX-License-Identifier: Apache-2.0
"""The softmax's matrix product and the cross-entropy in one, a chunk of tokens at a time.

With VOCAB = 37,000 and 25,000 tokens the logits of a step are 3.7 GB in float32, the largest array
of the training step. Here only `chunk` tokens' logits exist at once, and their gradient is formed
in the forward pass, where the logits are at hand: three matrix products in all, none repeated.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""]


class CrossEntropySums(NamedTuple):
    """Weighted sums over the tokens, float32; a mean is their quotient by the sum of the weights."""

    loss: Scalar  # label-smoothed; the only one with a gradient
    negative_log_likelihood: Scalar  # without smoothing: its mean's exponential is the perplexity
    correct: Scalar  # tokens whose label has the highest logit


def linear_cross_entropy(
    x: Float[Array, "N D"],
    embedding: Float[Array, "VOCAB D"],
    labels: Int[Array, " N"],
    *,
    bias: Float[Array, " VOCAB"] | None = None,
    label_smoothing: float = 0.0,
    weights: Float[Array, " N"] | None = None,
    chunk: int | None = None,
) -> CrossEntropySums:
    """Cross-entropy of softmax(x embedding^T + bias) with Szegedy's label smoothing (section 5.4).

    The loss of a token is (1 - e) nll + e mean over VOCAB of -log p, with e = `label_smoothing`.
    Differentiable in `x`, `embedding` and `bias`. `chunk`: how many tokens' logits exist at once (None or
    0: all of them). The products run in the dtype of `x`, all sums in float32.
    """
    count = x.shape[0]
    weights = jnp.ones(count, jnp.float32) if weights is None else weights.astype(jnp.float32)
    chunk = min(chunk or count, count)
    padding = -count % chunk
    x = jnp.pad(x, ((0, padding), (0, 0)))
    labels, weights = jnp.pad(labels, (0, padding)), jnp.pad(weights, (0, padding))
    return _chunked(x, embedding, bias, labels, weights, label_smoothing, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked(x, embedding, bias, labels, weights, label_smoothing, chunk):
    def step(sums, inputs):
        x, labels, weights = inputs
        chunk_sums, _ = _one_chunk(x, labels, weights, embedding, bias, label_smoothing)
        return jax.tree.map(jnp.add, sums, chunk_sums), None

    return _scan(step, _zero_sums(weights), _split((x, labels, weights), chunk))[0]


def _forward(x, embedding, bias, labels, weights, label_smoothing, chunk):
    def step(carry, inputs):
        sums, d_embedding, d_bias = carry
        x, labels, weights = inputs
        chunk_sums, d_logits = _one_chunk(x, labels, weights, embedding, bias, label_smoothing)
        if bias is not None:
            d_bias += d_logits.sum(axis=0)
        d_logits = d_logits.astype(x.dtype)
        d_x = (d_logits @ embedding.astype(x.dtype)).astype(x.dtype)
        d_embedding += jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, chunk_sums), d_embedding, d_bias), d_x

    zeros = [
        None if of is None else jnp.zeros(of.shape, jnp.float32) + 0 * weights[0]
        for of in (embedding, bias)
    ]
    inputs = _split((x, labels, weights), chunk)
    (sums, d_embedding, d_bias), d_x = _scan(step, (_zero_sums(weights), *zeros), inputs)
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return sums, (d_x.reshape(x.shape), d_embedding.astype(embedding.dtype), d_bias)


def _backward(label_smoothing, chunk, residuals, cotangents):
    scaled = jax.tree.map(lambda of: (cotangents.loss * of).astype(of.dtype), residuals)
    return *scaled, None, None


_chunked.defvjp(_forward, _backward)


def _one_chunk(x, labels, weights, embedding, bias, label_smoothing):
    """The sums of one chunk, and the gradient of its loss with respect to its logits (float32)."""
    logits = jnp.einsum(
        "nd,vd->nv", x, embedding.astype(x.dtype), preferred_element_type=jnp.float32
    )
    if bias is not None:
        logits += bias.astype(jnp.float32)
    vocabulary = logits.shape[-1]
    largest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    log_total = (largest + jnp.log(total))[:, 0]
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]

    nll = log_total - label_logits
    uniform = log_total - logits.mean(axis=-1)
    loss = (1 - label_smoothing) * nll + label_smoothing * uniform
    sums = CrossEntropySums(
        loss=jnp.sum(weights * loss),
        negative_log_likelihood=jnp.sum(weights * nll),
        correct=jnp.sum(weights * (label_logits >= largest[:, 0])),
    )
    is_label = jnp.arange(vocabulary) == labels[:, None]
    target = jnp.where(is_label, 1 - label_smoothing, 0.0) + label_smoothing / vocabulary
    return sums, weights[:, None] * (exponentials / total - target)


def _zero_sums(weights):
    # Derived from an input rather than a constant, so that under `jax.shard_map` the scan's carry
    # varies over the mesh from the first iteration on.
    zero = 0 * weights[0]
    return CrossEntropySums(zero, zero, zero)


def _split(arrays, chunk):
    return jax.tree.map(lambda array: array.reshape(-1, chunk, *array.shape[1:]), arrays)


def _scan(step, carry, inputs):
    """`jax.lax.scan`, without the loop when there is a single chunk."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(step, carry, inputs)
    carry, out = step(carry, jax.tree.map(lambda array: array[0], inputs))
    return carry, jax.tree.map(lambda array: array[None], out)
