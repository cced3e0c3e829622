# SPDX-License-Identifier: Apache-2.0
"""Dropout (section 5.4), and where its randomness comes from: a function of (seed, step, place).

There is no generator whose state would have to be kept. A module called with `rng=None` is being evaluated.
"""

import dataclasses
import functools

import attention_kernels
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DropoutRng:
    """One step's randomness: a seed, and the global number of each row of the batch.

    Because a mask depends on the row's global number, a batch that is split over devices or over
    microbatches drops the same entries as the whole.
    """

    seed: UInt32[Array, ""]
    rows: Int[Array, " B"]

    @classmethod
    def of_step(
        cls,
        seed: int | Integer[Array, ""] | PRNGKeyArray,
        step: int | Integer[Array, ""],
        rows: Int[Array, " B"],
    ) -> "DropoutRng":
        """The rng of training step `step` of the run with this seed, or `jax.random.key`."""
        return cls(attention_kernels.fold_in(seed, step), jnp.asarray(rows))

    def fold_in(self, place: int | Integer[Array, ""]) -> "DropoutRng":
        """An independent rng for one place (a layer, a sublayer) of the model."""
        return DropoutRng(attention_kernels.fold_in(self.seed, place), self.rows)


def fold_in(rng: DropoutRng | None, place: int | Integer[Array, ""]) -> DropoutRng | None:
    """`rng.fold_in(place)`, or None when there is no rng.

    Raises:
      TypeError: it is something else, such as a `jax.random.key`.
    """
    check_rng(rng)
    return None if rng is None else rng.fold_in(place)


def check_rng(rng: DropoutRng | None) -> None:
    """Raises: TypeError, if it is something else."""
    if not isinstance(rng, DropoutRng | None):
        raise TypeError(
            f"rng is {type(rng).__name__}; it must be a DropoutRng, such as "
            "DropoutRng.of_step(seed, step, batch.rows), or None in evaluation"
        )


def dropout(
    x: Float[Array, "B T D"],
    rate: float,
    rng: DropoutRng | None,
    *,
    deterministic: bool | None = None,
) -> Float[Array, "B T D"]:
    """Dropout in training; the identity in evaluation. `deterministic`: see `evaluated`."""
    x = evaluated(x, rate, rng, deterministic)
    if rng is None or rate == 0.0:
        return x
    return attention_kernels.dropout(x, rate=rate, seed=rng.seed, row_ids=rng.rows)


def evaluated(
    x: Float[Array, "*shape"], rate: float, rng: DropoutRng | None, deterministic: bool | None
) -> Float[Array, "*shape"]:
    """x itself, which refuses to be differentiated where dropout was set and forgotten.

    Training without dropout where the config asks for some gives no sign of itself but a worse model.
    So `rng=None` with a rate above 0 is evaluation, and a gradient through it an error, unless NNX's own
    switch, which sets the modules' attribute `deterministic`, says that it is meant:

      a new model     evaluation without rng; its gradient raises
      model.train()   a call without rng raises
      model.eval()    evaluation without rng; its gradient is taken, for saliency maps and the like

    Raises:
      ValueError: see above.
      TypeError: rng is something else.
    """
    check_rng(rng)
    if rng is not None or rate == 0.0 or deterministic:
        return x
    if deterministic is False:
        raise ValueError(_FORGOTTEN.format("this model is in training mode", rate))
    return _not_differentiable(rate, x)


_FORGOTTEN = (
    "{} and has dropout={}, but no rng was given: pass rng=DropoutRng.of_step(seed, step, batch.rows), "
    "or set dropout=0, or call model.eval() where dropout is to be left out"
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _not_differentiable(rate, x):
    return x


@_not_differentiable.defjvp
def _refuse(rate, primals, tangents):
    raise ValueError(_FORGOTTEN.format("this model is being differentiated", rate))
