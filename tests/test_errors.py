# SPDX-License-Identifier: Apache-2.0
"""What a command says of errors that its user can mend, and that it keeps quiet about no other."""

import errno
import subprocess
import sys

import pytest

from transformer_jax.errors import mendable, run_command

FAILING = """
import jax.numpy as jnp
from transformer_jax.errors import run_command

def main(_):
    {statement}

run_command(main)
"""


def fail(statement: str) -> subprocess.CompletedProcess:
    """A command that does this."""
    script = FAILING.format(statement=statement)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_a_device_without_memory_ends_in_one_line():
    run = fail("jnp.zeros(2**47, jnp.int8).block_until_ready()")  # 141 TB
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("error: the memory of a device is full; training needs less with")
    assert run.stderr.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback():
    run = fail("jnp.zeros(3) + jnp.zeros(4)")
    assert run.returncode == 1
    assert "Traceback" in run.stderr and "incompatible shapes" in run.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_s_errors_name_the_file(number):
    line = str(mendable(OSError(number, "why", "runs/x")))
    assert line == "runs/x cannot be read or written: why"
    assert mendable(OSError(errno.EBADF, "a bug")) is None


def test_a_full_disk_is_one_line(capsys, monkeypatch):
    def main(_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr(sys, "argv", ["main"])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert (
        error == "error: runs/x/metrics.jsonl cannot be read or written: No space left on device\n"
    )
