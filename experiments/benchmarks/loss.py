# SPDX-License-Identifier: Apache-2.0
"""The softmax's matrix product with cross-entropy, forward and backward: chunks against whole logits.

Every contestant returns the summed loss and both gradients, of hidden vectors in bfloat16 and an
embedding in float32 that is rounded for the products, as in training.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.programs import JaxProgram, TorchProgram, to_numpy, to_torch
from experiments.benchmarks.rows import Entry, Row
from experiments.benchmarks.work import loss_flops

KIND = "loss+gradients"
_SMOOTHING = 0.1
_CHUNKS = (0, 512, 2_048, 8_192)

PEERS = ["plain jnp", "optax", "tokamax, no smoothing", "PyTorch", "PyTorch, compiled"]

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # x [N, D], [VOCAB, D], labels [N]


def rows(smoke: bool) -> list[Row]:
    """Base's and big's."""
    tokens, vocabulary = (40, 90) if smoke else (25_000, 37_000)
    chunks = (0, 16) if smoke else _CHUNKS
    return [
        Row(
            f"loss, {tokens} x {d_model} on {vocabulary}",
            {"flops": {KIND: loss_flops(tokens, d_model, vocabulary)}, "peers": PEERS},
            functools.partial(_entries, tokens, d_model, vocabulary, chunks),
        )
        for d_model in ((16,) if smoke else (512, 1024))
    ]


def _entries(tokens: int, d_model: int, vocabulary: int, chunks: tuple[int, ...]) -> list[Entry]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, d_model), jnp.bfloat16)
    embedding = jax.random.normal(keys[1], (vocabulary, d_model)) * d_model**-0.5
    labels = jax.random.randint(keys[2], (tokens,), 0, vocabulary)
    arrays = x, embedding, labels

    @functools.cache
    def expected(smoothing: float) -> list[np.ndarray]:
        """Loss and gradients in float32, with the embedding rounded as for everybody."""
        rounded = embedding.astype(jnp.bfloat16).astype(jnp.float32)
        loss = functools.partial(plain, smoothing=smoothing, precision="highest")
        outputs = _with_gradients(loss)(x.astype(jnp.float32), rounded, labels)
        return [to_numpy(array) for array in _flat(outputs)]

    def errors(outputs: Any, smoothing: float = _SMOOTHING) -> dict[str, float]:
        found = [
            float(np.abs(to_numpy(ours) - theirs).max() / np.abs(theirs).max())
            for ours, theirs in zip(outputs, expected(smoothing), strict=True)
        ]
        return {"error": found[0], "gradient_error": max(found[1:])}

    def entry(name: str, loss: Loss, check: Callable[[Any], dict[str, float]]) -> Entry:
        make = functools.partial(JaxProgram, _with_gradients(loss), *arrays)
        return Entry(name, KIND, make, lambda outputs: check(_flat(outputs)))

    entries = [entry(f"ours, chunk {of}", _ours(of), errors) for of in chunks]
    entries += [entry("plain jnp", plain, errors), entry("optax", _optax, errors)]
    without = functools.partial(errors, smoothing=0.0)
    entries.append(entry("tokamax, no smoothing", _tokamax, without))
    for name, compiled in (("PyTorch", False), ("PyTorch, compiled", True)):
        make = functools.partial(_torch, arrays, compiled)
        entries.append(Entry(name, KIND, make, lambda outputs: errors(outputs[0])))
    return entries


def _with_gradients(loss: Loss) -> Any:
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def _flat(outputs: Any) -> list[jax.Array]:
    loss, gradients = outputs
    return [loss, *gradients]


def _ours(chunk: int) -> Loss:
    def loss(x, embedding, labels):
        return attention_kernels.linear_cross_entropy(
            x, embedding, labels, label_smoothing=_SMOOTHING, chunk=chunk
        ).loss

    return loss


def _logits(x, embedding, precision=None):
    return jnp.einsum(
        "nd,vd->nv",
        x,
        embedding.astype(x.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def plain(x, embedding, labels, smoothing=_SMOOTHING, precision=None):
    """As one would write it, with all logits; in float32 at highest precision the reference."""
    log_p = jax.nn.log_softmax(_logits(x, embedding, precision))
    nll = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return jnp.sum((1 - smoothing) * nll - smoothing * log_p.mean(axis=-1))


def _optax(x, embedding, labels):
    logits = _logits(x, embedding)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), _SMOOTHING)
    return optax.softmax_cross_entropy(logits, targets).sum()


def _tokamax(x, embedding, labels):
    if importlib.util.find_spec("tokamax") is None:
        raise NotImplementedError("tokamax is not installed")
    import tokamax

    weights = embedding.astype(x.dtype).T
    return tokamax.linear_softmax_cross_entropy_loss(x, labels, weights, reduction="sum")


def _torch(arrays: tuple[jax.Array, ...], compiled: bool) -> TorchProgram:
    import torch
    from torch.nn import functional

    if compiled and not torch.cuda.is_available():
        raise NotImplementedError("PyTorch without CUDA is not compiled")
    x, embedding, labels = map(to_torch, arrays)
    labels = labels.long()

    def loss(x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        logits = functional.linear(x, embedding.to(x.dtype))
        return functional.cross_entropy(
            logits.float(), labels, label_smoothing=_SMOOTHING, reduction="sum"
        )

    forward = torch.compile(loss) if compiled else loss

    def call():
        inputs = x.requires_grad_(), embedding.requires_grad_()
        out = forward(*inputs)
        return out.detach(), *torch.autograd.grad(out, inputs)

    return TorchProgram([call], holds=x.nbytes + embedding.nbytes + labels.nbytes, graph=True)
