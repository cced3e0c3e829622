# SPDX-License-Identifier: Apache-2.0
"""What every public function asks of its arguments; the messages name them, their kind and shape."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_floats(arrays: dict[str, Any], rank: int) -> None:
    """Raise a TypeError or ValueError unless all are arrays of floats, of this rank."""
    for name, array in arrays.items():
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{name} is of type {kind}; it must be an array of floats")
        if len(array.shape) != rank:
            raise ValueError(f"{name} has shape {array.shape}; it must have {rank} dimensions")


def check_integers(name: str, array: Any, *shapes: tuple[int, ...], booleans: bool = False) -> None:
    """Raise a TypeError or ValueError unless it is an array of integers of one of these shapes."""
    dtype = _dtype(array)
    if dtype is None:
        raise TypeError(
            f"{name} is of type {type(array).__name__}; it must be an array of integers"
        )
    if not (jnp.issubdtype(dtype, jnp.integer) or (booleans and dtype == jnp.bool_)):
        raise TypeError(f"{name} is of dtype {dtype}; it must be of integers")
    if jnp.shape(array) not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {jnp.shape(array)}; it must be {allowed}")


def check_rate(rate: Any, name: str) -> float:
    """A share that a caller wants dropped: compiled into the kernels, so not traced.

    Raises:
      TypeError, ValueError: it is traced, or not a number from 0 to 1.
    """
    check_static(rate, name)
    if not isinstance(rate, numbers.Real | np.ndarray | jax.Array) or isinstance(rate, bool):
        raise TypeError(f"{name} is {kind_of(rate)}; it must be a number from 0 to 1")
    if getattr(rate, "size", 1) != 1 or not 0.0 <= float(rate) <= 1.0:
        raise ValueError(f"{name}={rate}; it must be a number from 0 to 1")
    return float(rate)


def check_static(value: Any, name: str) -> None:
    """Raise a TypeError if it is traced."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is traced; it must be known when compiling")


def check_scalar(value: Any, name: str) -> None:
    """Raise a TypeError or ValueError unless it is a real number, or a scalar array of one."""
    dtype = _dtype(value)
    if dtype is None or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        raise TypeError(f"{name} is {kind_of(value)}; it must be a real number")
    if jnp.ndim(value):
        raise ValueError(f"{name} has shape {jnp.shape(value)}; it must be a scalar")


def _dtype(value: Any) -> Any:
    """Of an array or a Python number; None of anything else."""
    return getattr(value, "dtype", np.result_type(type(value)) if np.isscalar(value) else None)


def kind_of(value: Any) -> str:
    """What a wrong argument is, for a message."""
    if hasattr(value, "dtype"):
        return f"an array {list(np.shape(value))} of {value.dtype}"
    return f"{value!r} of type {type(value).__name__}"
