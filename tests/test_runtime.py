# SPDX-License-Identifier: Apache-2.0
"""How many devices a CPU is taken for."""

import os
import subprocess
import sys

import pytest

from transformer_jax import runtime
from transformer_jax.runtime import cpu_devices


@pytest.mark.parametrize("cores, devices", [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (96, 4)])
def test_a_power_of_two_that_the_cores_suffice_for(cores, devices):
    assert cpu_devices(cores) == devices


@pytest.mark.parametrize("asked", [None, "3"])
def test_commands_take_a_cpu_for_its_cores_or_for_what_is_asked(asked):
    environment = {name: of for name, of in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    if asked:
        environment["JAX_NUM_CPU_DEVICES"] = asked
    script = """if True:
        from transformer_jax import runtime
        runtime.keep_freed_memory = lambda: print("keeps")
        runtime.set_up()
        import jax
        print(jax.device_count())"""
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    *keeps, count = run.stdout.split()
    assert int(count) == (int(asked) if asked else cpu_devices(cores))
    if sys.platform == "linux" and not runtime._has_accelerator_plugin():
        assert keeps == (["keeps"] if int(count) <= cores else []), "freed memory"
