# SPDX-License-Identifier: Apache-2.0
"""The parts of a layer in places where a stranger's program may put them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conftest import random_batch
from transformer_jax.config import ModelConfig
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.inference.beam_search import beam_search
from transformer_jax.model.embeddings import Embedding
from transformer_jax.model.layers import Dense, FeedForward, Residual
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.loss import loss_sums

FLOAT32 = jnp.dtype("float32")
CONFIG = ModelConfig(
    vocab_size=96, max_length=32, num_layers=1, d_model=12, d_ff=20, num_heads=2, d_k=6, d_v=4,
    dropout=0.0, logits_bias=True,
)  # fmt: skip


@pytest.mark.parametrize("dims", [(0,), (0, 5), (3, 0), ()])
def test_the_parts_take_empty_batches(dims):
    x = jnp.ones((*dims, 12))
    dense = Dense(12, 7, FLOAT32, rngs=nnx.Rngs(0))
    assert dense(x).shape == (*dims, 7)
    grads = jax.grad(lambda x: dense(x).sum())(x)
    assert grads.shape == x.shape
    if len(dims) == 2:
        feed_forward = FeedForward(CONFIG, FLOAT32, rngs=nnx.Rngs(0))
        residual = Residual(CONFIG, FLOAT32, rngs=nnx.Rngs(0))
        embedding = Embedding(CONFIG, FLOAT32, rngs=nnx.Rngs(0))
        ids = jnp.zeros(dims, jnp.int32)
        assert residual(x, feed_forward, None).shape == (*dims, 12)
        assert embedding.embed(ids).shape == (*dims, 12)
        assert embedding.encode_positions(ids, dims[1]).shape == (*dims, 12)
        assert embedding.logits(x).shape == (*dims, 96)


def search(model: Transformer, batch: Batch, width: int, precision: str | None = None):
    weights = model.search_weights(precision)
    rows = batch.rows.shape[0]
    return beam_search(
        lambda ids, position, cache, context: model.decode_step(
            ids, position, cache, *context, weights
        ),
        model.empty_cache(rows, width, 4),
        beam_size=width,
        max_lengths=jnp.full(rows, 8),
        length=8,
        prefix=jnp.full((rows, 1), 5),
        never=(0,),
        context=(model.read_source(batch.source, weights), batch.source.segments),
        cache_axis=3,
    )


@pytest.mark.parametrize(
    "choices",
    [{}, {"norm_position": "pre", "positions": "learned", "decoder_start": "pad"}],
)
def test_no_rank_and_no_dtype_is_promoted_in_silence(choices):
    """`jax_numpy_rank_promotion="raise"`, with which other projects find their mistakes: in tracing."""
    config = ModelConfig(**{**vars(CONFIG), **choices})
    model = Transformer(config, rngs=nnx.Rngs(0))
    structure, params = nnx.split(model, nnx.Param)
    batch = random_batch(0, rows=3, source_length=9, target_length=6)

    def loss(params, remat):
        model = nnx.merge(structure, params)
        return loss_sums(model, batch, label_smoothing=0.1, remat=remat).loss

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for remat in (False, True):
            grads = jax.eval_shape(jax.grad(functools.partial(loss, remat=remat)), params)
            assert jax.tree.structure(grads) == jax.tree.structure(params)
        for width, precision in ((1, None), (3, None), (2, "int16"), (2, "bfloat16")):
            result = jax.eval_shape(lambda: search(model, batch, width, precision))  # noqa: B023
            assert result.ids.shape == (3, width, 8)
        with pytest.raises(ValueError, match="rank_promotion"):  # the control
            jax.eval_shape(lambda: jnp.ones((2, 3)) + jnp.ones(3))


@pytest.mark.parametrize("shape", [(0, 6), (2, 0)])
def test_a_model_takes_an_empty_batch(shape):
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    tokens = Tokens.of(jnp.zeros(shape, jnp.int32))
    batch = Batch(tokens, tokens, jnp.arange(shape[0]))
    assert jax.jit(model)(batch).shape == (*shape, 96)
    structure, params = nnx.split(model, nnx.Param)
    loss, gradient = jax.jit(
        jax.value_and_grad(
            lambda params: loss_sums(nnx.merge(structure, params), batch, label_smoothing=0.1).loss
        )
    )(params)
    assert loss == 0.0 and all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))
    if shape[0] == 0:
        for width in (1, 3):
            found = jax.jit(lambda: search(model, batch, width))()  # noqa: B023
            assert found.ids.shape == (0, width, 8)
