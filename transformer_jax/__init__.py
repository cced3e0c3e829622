# SPDX-License-Identifier: Apache-2.0
"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017) in JAX and Flax NNX.

from transformer_jax import Translator

Translator.from_workdir("runs/demo").translate(["The young friend knows the neighbour."])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_jax.inference.translator import Translator

__all__ = ["Translator"]


def __getattr__(name: str) -> Any:
    # Imported when it is used, so that a config or --help need not wait for JAX.
    if name == "Translator":
        from transformer_jax.inference.translator import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
