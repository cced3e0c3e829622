# SPDX-License-Identifier: Apache-2.0
"""Many processes, one a host or one a GPU, that train one model: how they start, agree and end.

All run the same program on the same global arrays, and meet in the same computations. Process 0 alone
writes the run folder's text files and prepares its data; the folder is one that all of them see.
"""

import collections
import ctypes
import itertools
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.errors import UserError, first_line, mendable

# A process that gives no sign of life for so long counts as dead: JAX then ends the others.
HEARTBEAT_SECONDS = 60
# Until all processes have started, and until all have ended.
_START_SECONDS, _END_SECONDS = 300, 60
# The exit code of a process that stops because another one died: "try again", EX_TEMPFAIL in sysexits.h.
LOST = 75

# Calls until a vote is counted: as many steps as the loop is at most ahead of the devices.
_LATER = 2
_keys = itertools.count()


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes. Before JAX is used for anything else.

    Args:
      coordinator: host:port of process 0; None: all three are found by `jax.distributed`, which
        knows SLURM, Open MPI, Cloud TPU and GKE.
      num_processes: how many there are.
      process_id: which one this is, from 0 on.

    Raises:
      UserError: the arguments cannot be used. (Where the others are not there in time, JAX ends the
        process; see `_tell_when_aborted`.)
    """
    given = coordinator, num_processes, process_id
    if any(value is not None for value in given) and None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id go together; give all three, or "
            "--distributed alone where SLURM, GKE or a TPU slice tells them"
        )
    # JAX's own preemption service knows SIGTERM alone, and takes it from our handler.
    jax.config.update("jax_enable_preemption_service", False)
    _tell_when_aborted()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_END_SECONDS,
            # Told explicitly, a process has all of its host's devices, inside a SLURM job too.
            cluster_detection_method="deactivate" if coordinator else None,
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = first_line(error)
        raise UserError(
            f"the processes of this run did not find each other: {reason} (where nothing tells "
            "--distributed how many there are: --coordinator, --num_processes, --process_id)"
        ) from None


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    line = (
        "error: JAX ended this process, most likely since another one of this run has died or was not "
        "there in time (see above); start all of them again, they go on from the last checkpoint\n"
    )
    os.write(2, line.encode())
    os._exit(LOST)


def _tell_when_aborted() -> None:
    """End with a line and an exit code, not a stack of C++ calls and another of every thread.

    JAX's heartbeat ends a process through abort(), while all Python threads may be waiting for a
    collective: only C's handler is sure to be called.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = ctypes.c_int, type(_aborted)
    libc.signal(signal.SIGABRT, _aborted)


def is_first() -> bool:
    """Whether this process writes what there must be one of."""
    return jax.process_index() == 0


def on_first(function: Callable[[], object]) -> None:
    """Process 0 calls the function while the others wait, for hours if need be.

    Raises:
      UserError: in every process, if the function raises one.
    """
    if jax.process_count() == 1:
        function()
        return
    # Through the service that found the processes: a collective would give up after some minutes.
    from jax._src.distributed import global_state

    service, key = global_state.client, f"transformer_jax/{next(_keys)}"
    assert service is not None
    if is_first():
        try:
            function()
        except UserError as error:
            service.key_value_set(key, f"error: {error}")
            raise
        service.key_value_set(key, "done")
        return
    while True:
        try:
            told = service.blocking_key_value_get(key, 1000)
            break
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    if told != "done":
        raise UserError(told.removeprefix("error: "))


def largest(number: int) -> int:
    """The largest number that a process calls this with; all wait for each other."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


class Vote:
    """A number, 0 if there is nothing to say, of which all processes learn the largest.

    They learn it in the same call, and none waits: what is said now counts two calls later, when the
    computation that carries it is over anyway. In a run of one process it counts at once.
    """

    def __init__(self) -> None:
        self._said: collections.deque[jax.Array] = collections.deque()
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        self._one_each = NamedSharding(mesh, PartitionSpec("devices"))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> int:
        """Say a number; all processes make this call equally often."""
        if jax.process_count() == 1:
            return number
        numbers = jax.make_array_from_callback(
            (jax.device_count(),), self._one_each, lambda _: np.full(1, number, np.int32)
        )
        self._said.append(self._largest(numbers))
        return int(self._said.popleft()) if len(self._said) > _LATER else 0

    def close(self, number: int) -> int:
        """The same, and what was said and is not counted yet, without delay."""
        uncounted = [int(said) for said in self._said]
        self._said.clear()
        return largest(max([number, *uncounted]))


def end_at_once(error: BaseException) -> NoReturn:
    """Tell what went wrong in this process of many, and end it.

    Not by way of the interpreter's end, where JAX and Orbax wait for processes that wait for this one.
    The others notice within HEARTBEAT_SECONDS.
    """
    error = mendable(error) or error
    if isinstance(error, UserError):
        message, code = " ".join(str(error).split()), 2
    elif isinstance(error, KeyboardInterrupt):
        message, code = "interrupted", 130
    elif lost_another(error):
        reason = first_line(error)
        message, code = (
            (
                "another process of this run has died or cannot be reached; start all of them again, they "
                f"go on from the last checkpoint ({reason})"
            ),
            LOST,
        )
    else:
        traceback.print_exception(error)
        message, code = f"{type(error).__name__} in process {jax.process_index()}", 1
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    if is_first():
        time.sleep(1)  # the others learn of an error from this process before it is gone
    os._exit(code)


def lost_another(error: BaseException) -> bool:
    """Whether an error comes from a collective that another process did not take part in."""
    text = str(error)
    if jax.process_count() == 1 or text.startswith("RESOURCE_EXHAUSTED"):
        return False
    # Not every library that passes such an error on keeps its class.
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(re.search("Gloo|NCCL", text))
