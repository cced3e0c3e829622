# SPDX-License-Identifier: Apache-2.0
"""What the GPU benchmarks time: a program of JAX or of PyTorch, ready to run on the device.

Neither is timed call by call. So many calls are queued that the device, not Python, is the bottleneck
(`rows.py` chooses how many), and inputs of several calls stand in memory at once, so that they do not
come from the cache. All outputs are results of the program: nothing that training needs can be left out.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Program(Protocol):
    """One contestant's program of one row."""

    calls: int  # how often one run does the row's work

    def compile(self) -> None:
        """What takes long; several programs may do it at the same time."""
        ...

    def first(self) -> Any:
        """Run once, and be warm; the outputs."""
        ...

    def seconds(self, runs: int) -> float:
        """How long so many runs take, one behind the other."""
        ...

    def gigabytes(self) -> float | None:
        """Peak memory of one call: arguments, results and what is between."""
        ...


class JaxProgram:
    """A jitted function of arguments that are on the device."""

    def __init__(
        self,
        function: Any,
        *arguments: Any,
        calls: int = 1,
        following: Callable[[Any, Sequence[Any]], Sequence[Any]] | None = None,
    ):
        """Trace it. `following` makes the next run's arguments from outputs and arguments."""
        self.calls = calls
        self._arguments: Sequence[Any] = arguments
        self._following = following
        self._lowered = function.lower(*arguments)

    def compile(self) -> None:
        """XLA's part."""
        self._compiled = self._lowered.compile()

    def first(self) -> Any:
        """The outputs of one run."""
        return self._run(1)

    def seconds(self, runs: int) -> float:
        """By the host's clock, from the first call to the last result."""
        start = time.perf_counter()
        self._run(runs)
        return time.perf_counter() - start

    def gigabytes(self) -> float | None:
        """As XLA planned it: temporary arrays, and one call's share of arguments and results."""
        memory = self._compiled.memory_analysis()
        if memory is None:
            return None
        outside = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        )
        return (memory.temp_size_in_bytes + outside / self.calls) / 1e9

    def _run(self, runs: int) -> Any:
        for _ in range(runs):
            outputs = self._compiled(*self._arguments)
            if self._following:
                self._arguments = self._following(outputs, self._arguments)
        return jax.block_until_ready(outputs)


def several(function: Callable[..., Any], sets: Sequence[Sequence[Any]]) -> JaxProgram:
    """The function on several sets of arguments, in one program, so that one launch starts them all."""
    single = jax.jit(function)
    return JaxProgram(
        jax.jit(lambda *sets: [single(*each) for each in sets]), *sets, calls=len(sets)
    )


class TorchProgram:
    """Functions of no arguments that queue PyTorch's work; on a GPU a CUDA graph where one can be made.

    XLA launches its kernels from C++, several at a time; eager PyTorch launches each from Python. The
    graph takes that difference away, since it is not what the kernels are compared for.
    """

    def __init__(self, each: Sequence[Callable[[], Any]], *, holds: int, graph: bool = False):
        """`each` does the row's work once, with arguments of `holds` bytes.

        `graph`: try to capture one; not for work that changes what it reads.
        """
        import torch

        self.calls = len(each)
        self._torch, self._each, self._holds, self._graph = torch, each, holds, graph
        self._on_gpu = torch.cuda.is_available()
        self._run: Callable[[], Any] = lambda: [call() for call in each]

    def compile(self) -> None:
        """`torch.compile` works at the first call."""
        self._run()
        self._wait()

    def first(self) -> Any:
        """The outputs of one run; the memory that a call took; the graph."""
        if not self._on_gpu:
            return self._run()
        memory = self._torch.cuda
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        self._each[0]()
        self._wait()
        self._peak = (memory.max_memory_allocated() - before + self._holds) / 1e9
        outputs = self._run()
        self._wait()
        if self._graph:
            self._capture()
        return outputs

    def seconds(self, runs: int) -> float:
        """By CUDA's events; on a CPU by the clock."""
        if not self._on_gpu:
            start = time.perf_counter()
            for _ in range(runs):
                self._run()
            return time.perf_counter() - start
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._wait()
        begin.record()
        for _ in range(runs):
            self._run()
        end.record()
        self._wait()
        return begin.elapsed_time(end) / 1e3

    def gigabytes(self) -> float | None:
        """As PyTorch's allocator saw it; None on a CPU, where it keeps no count."""
        return self._peak if self._on_gpu else None

    def _wait(self) -> None:
        if self._on_gpu:
            self._torch.cuda.synchronize()

    def _capture(self) -> None:
        graph, stream = self._torch.cuda.CUDAGraph(), self._torch.cuda.Stream()
        try:
            stream.wait_stream(self._torch.cuda.current_stream())
            with self._torch.cuda.stream(stream):
                for _ in range(3):
                    self._run()
            self._wait()
            with self._torch.cuda.graph(graph, capture_error_mode="thread_local"):
                kept = self._run()
        except RuntimeError:
            self._wait()
            return  # it stays eager
        self._kept = kept  # the graph writes there
        self._run = graph.replay


def torch_device() -> str:
    """ "cuda", or "cpu" where JAX computes there too.

    Raises:
      NotImplementedError: JAX has a GPU and PyTorch has none.
    """
    import torch

    if not torch.cuda.is_available() and jax.default_backend() != "cpu":
        raise NotImplementedError("this PyTorch has no CUDA")
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_torch(array: jax.Array) -> Any:
    """The same values as a tensor on PyTorch's device."""
    import torch

    values = np.array(array)
    if array.dtype == jnp.bfloat16:  # which numpy cannot hand to PyTorch under its name
        return torch.from_numpy(values.view(np.int16)).to(torch_device()).view(torch.bfloat16)
    return torch.from_numpy(values).to(torch_device())


def to_numpy(array: Any) -> np.ndarray:
    """Float32 on the host, of JAX's or PyTorch's."""
    if isinstance(array, jax.Array):
        return np.asarray(array.astype(jnp.float32))
    return array.detach().float().cpu().numpy()
