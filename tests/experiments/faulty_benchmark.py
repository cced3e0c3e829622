# SPDX-License-Identifier: Apache-2.0
"""A benchmark for test_gpu_benchmarks.py in which one contestant hangs, one dies and one refuses."""

import os
import time

import jax
import jax.numpy as jnp

from experiments.benchmarks.programs import JaxProgram
from experiments.benchmarks.rows import Entry, Row


class Hanging:
    calls = 1

    def compile(self):
        pass

    def first(self):
        time.sleep(600)


class Dying(Hanging):
    def first(self):
        os._exit(3)


def refuse():
    raise NotImplementedError("not on | this device")


def rows(smoke):
    def entries():
        good = JaxProgram(jax.jit(jnp.negative), jnp.ones(3))
        return [
            Entry("hangs", "call", Hanging),
            Entry("dies", "call", Dying),
            Entry("refuses", "call", refuse),
            Entry("good", "call", lambda: good, lambda outputs: {"error": float(outputs[0])}),
        ]

    return [Row(name, {}, entries, patience=3.0) for name in ("one", "two", "three")]
