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


def run_python(script: str, **environment: str | None) -> subprocess.CompletedProcess:
    """The script in a process of its own, with these variables set, or without them."""
    variables = {**os.environ, **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True
    )


@pytest.mark.parametrize("asked", [None, "3"])
def test_commands_take_a_cpu_for_its_cores_or_for_what_is_asked(asked):
    """Where JAX runs already, as in a notebook, setting up again is no error, and logs once."""
    script = """if True:
        from transformer_jax import runtime
        runtime.keep_freed_memory = lambda: print("keeps")
        runtime.set_up()
        import jax
        print(jax.device_count())
        runtime.keep_freed_memory = lambda: None
        runtime.set_up()
        runtime.log.info("devices: %s", runtime.devices())"""
    run = run_python(script, JAX_NUM_CPU_DEVICES=asked)
    assert run.returncode == 0, run.stderr
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    *keeps, count = run.stdout.split()
    assert int(count) == (int(asked) if asked else cpu_devices(cores))
    if sys.platform == "linux" and not runtime._has_accelerator_plugin():
        assert keeps == (["keeps"] if int(count) <= cores else []), "freed memory"
    assert run.stderr.splitlines() == [f"devices: {count} x cpu"]


def test_a_training_without_a_command_is_seen_too():
    """As in a notebook, where nobody has set up a log."""
    run = run_python("""if True:
        from transformer_jax import runtime
        runtime.show_log()
        runtime.show_log()
        runtime.log.info("step 2")""")
    assert run.stderr == "step 2\n"


def test_devices_that_are_not_there_are_one_line():
    run = run_python(
        """if True:
        from transformer_jax import errors, runtime
        errors.run_command(lambda _: runtime.set_up())""",
        JAX_PLATFORMS="cuda",
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(
        "error: JAX cannot use the devices of JAX_PLATFORMS=cuda ("
    )
    assert "Traceback" not in run.stderr


def test_without_a_home_folder_compiled_programs_are_not_kept():
    """As in a container whose user has no entry in /etc/passwd."""
    run = run_python(
        """if True:
        import os.path
        os.path.expanduser = lambda path: path
        from transformer_jax import runtime
        runtime.set_up()
        import jax
        print(jax.config.values["jax_compilation_cache_dir"])""",
        XDG_CACHE_HOME=None,
        JAX_COMPILATION_CACHE_DIR=None,
    )
    assert run.stdout == "None\n", run.stderr
    assert run.stderr.startswith("there is no home folder, so compiled programs are not kept")
