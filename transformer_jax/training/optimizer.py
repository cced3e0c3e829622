# SPDX-License-Identifier: Apache-2.0
"""Adam and the learning rate's schedule: section 5.3."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from transformer_jax.config import OptimizerConfig


def learning_rate(
    step: Int[Array, ""] | int, config: OptimizerConfig, d_model: int
) -> Float[Array, ""]:
    """Equation 3: D^-0.5 min(step^-0.5, step warmup^-1.5), for step = 1, 2, ...

    The rate peaks at step = warmup with (D warmup)^-0.5, or with config.peak_rate if that is given.
    """
    warmup = config.warmup_steps
    peak = config.peak_rate or (d_model * warmup) ** -0.5
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum((step / warmup) ** -0.5, step / warmup)


def make_optimizer(config: OptimizerConfig, d_model: int) -> optax.GradientTransformation:
    """Adam with the paper's schedule; no clipping and no weight decay, as in the paper."""
    return optax.adam(
        lambda count: learning_rate(count + 1, config, d_model),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
    )
