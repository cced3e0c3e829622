# SPDX-License-Identifier: Apache-2.0
"""The softmax's matrix product and the cross-entropy in one, a chunk of tokens at a time.

With VOCAB = 37,000 and 25,000 tokens the logits of a step are 3.7 GB in float32, the largest array
of the training step. Here only `chunk` tokens' logits exist at once, and their gradient is formed
in the forward pass, where the logits are at hand: three matrix products in all, none repeated.
"""

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from attention_kernels.backends import is_sharded, vary_together
from attention_kernels.checks import check_floats, check_integers, check_rate
from attention_kernels.options import wide

Scalar = Float[Array, ""]


class CrossEntropySums(NamedTuple):
    """Weighted sums over the tokens, float32; a mean is their quotient by the sum of the weights."""

    loss: Scalar  # label-smoothed: what training differentiates
    negative_log_likelihood: Scalar  # without smoothing: its mean's exponential is the perplexity
    correct: Scalar  # tokens whose label has the highest logit, alone or with others; no gradient


def linear_cross_entropy(
    x: Any,
    embedding: Any,
    labels: Any,
    *,
    bias: Any = None,
    label_smoothing: Any = 0.0,
    weights: Any = None,
    chunk: Any = None,
) -> CrossEntropySums:
    """Cross-entropy of softmax(x embedding^T + bias) with Szegedy's label smoothing (section 5.4).

    The loss of a token is (1 - e) nll + e mean over VOCAB of -log p, with e = `label_smoothing`. The
    products run in the dtype of `x`, all sums in float32. Both sums of losses are differentiable in `x`,
    `embedding`, `bias` and `weights`; the gradient of `negative_log_likelihood` makes the logits again.

    Args:
      x [N, D], embedding [VOCAB, D]: floats.
      labels [N]: integers. One that is not a word makes the sums NaN, unless the token's weight is 0:
        -100 for what is not to be counted needs `weights=labels != -100`.
      bias [VOCAB]: -inf for words that are never meant. With smoothing, which spreads over all words,
        the loss is then infinite.
      label_smoothing: e, from 0 to 1.
      weights [N]: of the tokens; default 1.
      chunk: how many tokens' logits exist at once (None or 0: all of them).

    Raises:
      TypeError, ValueError: the arguments do not fit each other.
      NotImplementedError: the tokens are sharded in JAX's explicit mode.
    """
    check_floats({"x": x, "embedding": embedding}, rank=2)
    if x.shape[1] != embedding.shape[1] or embedding.shape[0] == 0:
        raise ValueError(
            "x [N, D] and embedding [VOCAB, D] need the same D and a word at least; they have shapes "
            f"{x.shape} and {embedding.shape}"
        )
    if is_sharded(x):
        raise NotImplementedError(
            "x is sharded in explicit mode; sharded_linear_cross_entropy, or jax.shard_map, gives each "
            "device tokens of its own"
        )
    count, words = x.shape[0], embedding.shape[0]
    check_integers("labels", labels, (count,))
    if bias is not None:
        check_floats({"bias": bias}, rank=1)
        if bias.shape != (words,):
            raise ValueError(f"bias has shape {bias.shape}; it must be ({words},)")
    if weights is None:
        weights = jnp.ones_like(labels, jnp.float32)
    elif jnp.shape(weights) != (count,):
        raise ValueError(f"weights has shape {jnp.shape(weights)}; it must be ({count},)")
    if not isinstance(chunk, numbers.Integral | None) or int(chunk or 0) < 0:
        raise ValueError(f"chunk={chunk}; it must be a number of tokens, or 0 for all of them")
    smoothing = check_rate(label_smoothing, "label_smoothing")
    chunk = max(1, min(int(chunk or count), count))
    padding = -count % chunk
    x = jnp.pad(x, ((0, padding), (0, 0)))
    labels, weights = (
        jnp.pad(of, (0, padding))
        for of in (jnp.asarray(labels, jnp.int32), jnp.asarray(weights, wide(x.dtype)))
    )
    return _chunked(smoothing, chunk, *vary_together((x, embedding, bias, weights, labels)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(smoothing, chunk, x, embedding, bias, weights, labels):
    tokens = functools.partial(_one_chunk, embedding, bias, smoothing)

    def step(sums, inputs):
        return _add(sums, inputs[1], tokens(*inputs)[0]), None

    return _scan(step, _zero_sums(weights), _split((x, weights, labels), chunk))[0]


def _forward(smoothing: float, chunk: int, *arguments: Any) -> tuple[CrossEntropySums, Any]:
    """The sums, and the gradients of the loss, formed where the logits are at hand."""
    arrays = [None if of is None else of.value for of in arguments]
    sums, tokens, gradients = _with_gradients(smoothing, chunk, *arrays)
    return sums, (arrays, tokens, gradients)


def _with_gradients(smoothing, chunk, x, embedding, bias, weights, labels):
    def step(carry, inputs):
        sums, d_embedding, d_bias = carry
        x, weights, _ = inputs
        tokens, d_logits = _one_chunk(embedding, bias, smoothing, *inputs)
        if bias is not None:
            d_bias += d_logits.sum(axis=0)
        d_logits = d_logits.astype(x.dtype)
        d_x = (d_logits @ embedding.astype(x.dtype)).astype(x.dtype)
        d_embedding += jnp.einsum(
            "nv,nd->vd", d_logits, x, preferred_element_type=d_embedding.dtype
        )
        return (_add(sums, weights, tokens), d_embedding, d_bias), (d_x, tokens)

    zero = _zero(weights)
    zeros = [None if of is None else jnp.broadcast_to(zero, of.shape) for of in (embedding, bias)]
    inputs = _split((x, weights, labels), chunk)
    (sums, d_embedding, d_bias), (d_x, tokens) = _scan(step, (_zero_sums(weights), *zeros), inputs)
    tokens = jax.tree.map(lambda of: of.reshape(weights.shape), tokens)
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return sums, tokens, (d_x.reshape(x.shape), d_embedding.astype(embedding.dtype), d_bias)


def _backward(smoothing, chunk, residuals, d_sums):
    arguments, tokens, gradients = residuals
    d_loss, d_nll, d_correct = (None if isinstance(of, SymbolicZero) else of for of in d_sums)
    parts = [] if d_loss is None else [_scaled(d_loss, gradients)]
    if d_nll is not None:
        parts.append(_scaled(d_nll, _with_gradients(0.0, chunk, *arguments)[2]))
    if not parts:
        parts = [jax.tree.map(jnp.zeros_like, gradients)]
    d_weights = jnp.zeros_like(tokens.loss)
    for d_sum, of_tokens in zip((d_loss, d_nll, d_correct), tokens, strict=True):
        d_weights += 0.0 if d_sum is None else d_sum * of_tokens
    return *jax.tree.map(lambda *of: sum(of[1:], of[0]), *parts), d_weights, None


def _scaled(factor, gradients):
    return jax.tree.map(lambda of: (factor * of.astype(factor.dtype)).astype(of.dtype), gradients)


_chunked.defvjp(_forward, _backward, symbolic_zeros=True)


def _one_chunk(embedding, bias, smoothing, x, weights, labels):
    """Of every token of a chunk (loss, nll, correct) [n], and the loss's gradient by the logits."""
    dtype = weights.dtype
    logits = jnp.einsum("nd,vd->nv", x, embedding.astype(x.dtype), preferred_element_type=dtype)
    if bias is not None:
        logits += bias.astype(dtype)[None]
    words = logits.shape[-1]
    largest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    log_total = (largest + jnp.log(total))[:, 0]
    label_logits = jnp.take_along_axis(logits, jnp.clip(labels, 0, words - 1)[:, None], axis=-1)[
        :, 0
    ]

    # A label that is no word has no probability: NaN, which nobody overlooks, where the token counts.
    counts, is_word = weights != 0, (labels >= 0) & (labels < words)
    nll = jnp.where(is_word, log_total - label_logits, jnp.where(counts, jnp.nan, 0.0))
    loss = nll
    if smoothing > 0.0:
        uniform = log_total - logits.mean(axis=-1)
        loss = (1 - smoothing) * nll + smoothing * uniform
    correct = jnp.where(is_word & (label_logits >= largest[:, 0]), 1.0, 0.0).astype(dtype)

    is_label = jnp.arange(words, dtype=jnp.int32)[None] == labels[:, None]
    target = jnp.where(is_label, 1 - smoothing, 0.0) + smoothing / words
    factor = jnp.where(is_word | ~counts, weights, jnp.nan)
    d_logits = factor[:, None] * (exponentials / total - target)
    return CrossEntropySums(loss, nll, correct), d_logits


def _add(sums, weights, tokens):
    """The weighted sums of a chunk's tokens on top of those before; without weight, without effect."""
    return jax.tree.map(
        lambda sum, of: sum + jnp.where(weights != 0, weights * of, 0.0).sum(), sums, tokens
    )


def _zero(weights):
    """A zero that varies over a mesh as the weights do, so that a scan's carry does from the start."""
    return vary_together((jnp.zeros((), weights.dtype), weights))[0]


def _zero_sums(weights):
    zero = _zero(weights)
    return CrossEntropySums(zero, zero, zero)


def _split(arrays, chunk):
    return jax.tree.map(
        lambda array: array.reshape(array.shape[0] // chunk, chunk, *array.shape[1:]), arrays
    )


def _scan(step, carry, inputs):
    """`jax.lax.scan`, without the loop when there is a single chunk."""
    if jax.tree.leaves(inputs)[0].shape[0] != 1:
        return jax.lax.scan(step, carry, inputs)
    carry, out = step(carry, jax.tree.map(lambda array: array[0], inputs))
    return carry, jax.tree.map(lambda array: array[None], out)
