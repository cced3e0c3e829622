# SPDX-License-Identifier: Apache-2.0
"""The training step (section 5): gradients of one global batch, and the update of the weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from transformer_jax.config import Config, ModelConfig
from transformer_jax.data.batch import Batch
from transformer_jax.model.dropout import DropoutRng
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.exchange import (
    EVERYWHERE,
    added_up,
    gathered,
    on_each_part,
    sums_added_up,
)
from transformer_jax.training.loss import LossSums, loss_sums, training_loss
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.sharding import (
    batch_sharding,
    replicated,
    state_shardings,
    state_specs,
)

Params = dict[str, Any]

# A step is bad if its loss or its gradient is not finite, or if, after the warm-up, its loss is above
# so many times ln(VOCAB), which is the loss of a model that guesses.
MOST_LOSS = 2.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes. Randomness is a function of (seed, step), so there is none here."""

    step: Any  # int32 scalar: how many steps were made, those that were skipped included
    params: Params  # nested by module and parameter name, float32
    optimizer: Any  # optax's state: Adam's moments and counts


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without memory or computation."""
    shapes = jax.eval_shape(lambda: _initial_state(config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def initial_state(config: Config, mesh: Mesh) -> TrainState:
    """Random weights and an empty optimizer, born on the devices where they will stay."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    return jax.jit(lambda: _initial_state(config), out_shardings=shardings)()


def _initial_state(config: Config) -> TrainState:
    model = Transformer(config.model, rngs=nnx.Rngs(params=config.train.seed))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = make_optimizer(config.optimizer, config.model.d_model)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def model_structure(config: ModelConfig) -> nnx.GraphDef:
    """The model without its weights: `nnx.merge(model_structure(config), params)` is the model."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[0]


def make_gradients(
    config: Config, mesh: Mesh
) -> Callable[[Params, Batch, jax.Array], tuple[LossSums, Params]]:
    """A function (params, batch, step) -> (sums over the batch, gradient of the mean loss, float32).

    With config.train.param_dtype=bfloat16 the matrices are rounded once, before everything else, so
    that what an fsdp mesh gathers is half as large; the float32 weights remain those that Adam moves.
    """
    structure = model_structure(config.model)

    def of_piece(params: Params, batch: Batch, step: jax.Array) -> tuple[LossSums, Params]:
        def loss(params: Params) -> tuple[jax.Array, LossSums]:
            rng = DropoutRng.of_step(config.train.seed, step, batch.rows)
            sums = training_loss(nnx.merge(structure, params), batch, config.train, rng)
            return sums.loss, sums

        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return sums, jax.tree.map(lambda grad: grad.astype(jnp.float32), grads)

    def gradients(params: Params, batch: Batch, step: jax.Array) -> tuple[LossSums, Params]:
        params = _rounded(params, jnp.dtype(config.train.param_dtype))
        specs = state_specs(params, mesh)

        def of_device(parts: Params, batch: Batch, step: jax.Array) -> tuple[LossSums, Params]:
            whole = gathered(parts, specs)
            sums, grads = _accumulate(
                lambda piece: of_piece(whole, piece, step),
                _pieces(batch, config.train.accumulate),
            )
            return sums_added_up(sums), added_up(grads, specs)

        split = on_each_part(of_device, mesh, specs, out=(EVERYWHERE, specs))
        sums, grads = split(params, batch, step)
        # One division for the whole mesh: a mean of the devices' means is a different gradient.
        return sums, jax.tree.map(lambda grad: grad / jnp.maximum(sums.tokens, 1.0), grads)

    return gradients


def _rounded(params: Params, dtype: jnp.dtype) -> Params:
    """The matrices in this dtype; norms and biases, a thousandth of the weights, as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def _is_good(config: Config, step: jax.Array, sums: LossSums, grads: Params) -> jax.Array:
    """Whether a step may change the weights; the same scalar on every device."""
    loss = sums.loss / jnp.maximum(sums.tokens, 1.0)
    limit = MOST_LOSS * math.log(config.model.vocab_size)
    calm = (step < config.optimizer.warmup_steps) | (loss <= limit)
    return jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads)) & calm


def make_train_step(
    config: Config, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, LossSums]]:
    """A compiled function (state, batch) -> (new state, sums over the batch).

    The state's buffers are donated: the state that was passed in is gone. The batch is computed in
    config.train.accumulate pieces; the update is the same for any number of them. A bad step (see
    MOST_LOSS) changes neither weights nor moments, and its sums are zeros.
    """
    optimizer = make_optimizer(config.optimizer, config.model.d_model)
    gradients = make_gradients(config, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, LossSums]:
        sums, grads = gradients(state.params, batch, state.step)
        good = _is_good(config, state.step, sums, grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        params, optimizer_state, sums = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, optimizer_state, sums),
            (state.params, state.optimizer, jax.tree.map(jnp.zeros_like, sums)),
        )
        return TrainState(state.step + 1, params, optimizer_state), sums

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def make_eval_step(config: Config, mesh: Mesh) -> Callable[[Params, Batch], LossSums]:
    """A compiled function (params, batch) -> sums over the batch, without dropout or smoothing."""
    structure = model_structure(config.model)

    def eval_step(params: Params, batch: Batch) -> LossSums:
        specs = state_specs(params, mesh)

        def of_device(parts: Params, batch: Batch) -> LossSums:
            model = nnx.merge(structure, gathered(parts, specs))
            chunk = config.train.logits_chunk
            return sums_added_up(loss_sums(model, batch, label_smoothing=0.0, logits_chunk=chunk))

        return on_each_part(of_device, mesh, specs, out=EVERYWHERE)(params, batch)

    return jax.jit(eval_step, out_shardings=replicated(mesh))


def _pieces(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [count, B / count, ...], each device's rows spread evenly over the pieces."""
    return jax.tree.map(
        lambda array: array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1), batch
    )


def _accumulate(gradients: Callable[[Batch], Any], pieces: Batch) -> Any:
    """The sum over the pieces of what `gradients` returns."""
    if pieces.rows.shape[0] == 1:
        return gradients(jax.tree.map(lambda array: array[0], pieces))
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(gradients, jax.tree.map(lambda array: array[0], pieces)),
    )

    def add(total: Any, piece: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(piece)), None

    return jax.lax.scan(add, zeros, pieces)[0]
