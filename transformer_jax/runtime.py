# SPDX-License-Identifier: Apache-2.0
"""What a command sets up before it computes: the compilation cache; on a CPU, devices and allocator."""

import collections
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import absl.logging
import jax

from transformer_jax.errors import UserError, first_line
from transformer_jax.files import with_home

log = logging.getLogger(__name__)

# glibc's names for what mallopt changes (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MOST_CPU_DEVICES = 4  # each has the weights and the optimizer's state in memory


def set_up(join: Callable[[], None] = lambda: None) -> None:
    """Call at a command's start, before JAX makes its first array; in a notebook any time.

    `join`: joins the other processes of a run, if there are any.

    Raises:
      UserError: JAX cannot use a device here, or not those that JAX_PLATFORMS names.
    """
    logging.getLogger("transformer_jax").propagate = False  # absl's handler prefixes time and file
    show_log()
    absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax tells every move at INFO
    _hide_tracebacks_of_threads()
    _prepare_cpu()
    if not jax.config.values["jax_compilation_cache_dir"]:
        _keep_compiled()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    join()
    devices()  # an error, if there are none
    if jax.process_index():
        # One process of many tells how the run goes; the others only what is wrong.
        logging.getLogger("transformer_jax").setLevel(logging.WARNING)


def show_log() -> None:
    """Let the package's log be seen on stderr, unless it goes somewhere already."""
    package = logging.getLogger("transformer_jax")
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)
    if not package.hasHandlers():
        handler = logging.StreamHandler()  # to stderr
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)


def _prepare_cpu() -> None:
    """Devices and allocator; once JAX runs, in a notebook, they stay as they are."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices(_cores()))
        except RuntimeError:
            return
    crowded = jax.config.values["jax_num_cpu_devices"] > _cores()
    if sys.platform == "linux" and not _has_accelerator_plugin() and not crowded:
        keep_freed_memory()


def _keep_compiled() -> None:
    """Have JAX keep compiled programs in the user's cache, if the user has a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or with_home("~/.cache")
    if cache.startswith("~"):
        log.warning(
            "there is no home folder, so compiled programs are not kept; JAX_COMPILATION_CACHE_DIR=... "
            "names a folder for them"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "transformer_jax"))


def devices() -> str:
    """The devices of all processes, such as "2 x cpu" or "8 x TPU v5 lite".

    Raises:
      UserError: JAX cannot use a device here, or not those that JAX_PLATFORMS names.
    """
    try:
        kinds = collections.Counter(device.device_kind for device in jax.devices())
    except (RuntimeError, AssertionError) as error:  # how JAX says that a platform is not there
        asked = jax.config.values["jax_platforms"]
        named = f"of JAX_PLATFORMS={asked}" if asked else "that it found"
        raise UserError(
            f"JAX cannot use the devices {named} ({first_line(error)}); free them or install what they "
            "need, such as jax[cuda13], or set JAX_PLATFORMS=cpu"
        ) from None
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def cpu_devices(cores: int) -> int:
    """How many devices a CPU is taken for: the largest power of two that the cores suffice for.

    A core that computes its own rows of the batch, in arrays that fit its cache, is faster than all
    cores at the same array: 0.43 s instead of 0.51 for a small model's step on two. A power of two
    divides a batch's rows (data/batching.py, filled_rows).
    """
    return min(_MOST_CPU_DEVICES, 1 << (cores.bit_length() - 1))


def _cores() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _hide_tracebacks_of_threads() -> None:
    """What fails in Orbax's threads is raised in the main one too, which tells it in one line.

    Without this a full disk would print a traceback for every array, some after that line.
    """
    absl.logging.get_absl_logger().addFilter(lambda record: not record.exc_info)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hook = sys.unraisablehook

    def of_main_thread(unraisable: "sys.UnraisableHookArgs") -> None:
        if threading.current_thread() is threading.main_thread():
            hook(unraisable)

    sys.unraisablehook = of_main_thread  # TensorStore calls it in the threads that write


def _has_accelerator_plugin() -> bool:
    """Whether JAX may find a GPU or TPU; asking JAX itself would start its threads."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None


def keep_freed_memory() -> None:
    """Make glibc's allocator keep the memory of large arrays instead of returning it to the kernel.

    XLA on a CPU allocates a step's temporary arrays anew at every call. Handed back and taken again,
    their pages are cleared by the kernel every time: a quarter of a small model's step. Works only
    before JAX's threads have memory pools of their own. Not for more devices than cores: many threads
    take and give back arrays in turn, and the pool would grow without end.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_ARENA_MAX, 1)
    except AttributeError:
        pass  # another C library, without mallopt
