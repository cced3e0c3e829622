# SPDX-License-Identifier: Apache-2.0
"""What a command says of errors that its user can mend, and that it keeps quiet about no other."""

import errno
import os
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


STREAMS = """
import os, sys
from transformer_jax.errors import check_stdout, run_command, tell

def main(_):
    file = open({path!r}, "w")
    tell("for people")
    print("Ω printed")
    assert file.fileno() > 2, "a closed stream's number was given to a file"
    {then}
    file.write("whole")

run_command(main)
"""


@pytest.mark.parametrize(
    ("shell", "output", "error"),
    [
        ("<&-", "Ω printed\n", "for people\n"),
        (">&-", "", "for people\n"),
        ("2>&-", "Ω printed\n", ""),
        ("<&- >&- 2>&-", "", ""),
        ("2>/dev/full", "Ω printed\n", ""),
        ("2> >(exec 0<&-)", "Ω printed\n", ""),  # nobody reads there
    ],
)
def test_work_goes_on_without_a_standard_stream(tmp_path, shell, output, error):
    script = STREAMS.format(path=str(tmp_path / "file"), then="os.system('true')")
    run = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, output, error)
    assert (tmp_path / "file").read_text() == "whole"


def test_a_result_without_a_place_is_one_line(tmp_path):
    script = STREAMS.format(path=str(tmp_path / "file"), then="check_stdout()")
    run = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" >&-', sys.executable, script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.endswith("error: stdout is closed; name a file with --output\n")


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", b"\\u03a9"), ("latin-1", b"\\u03a9")])
def test_what_stdout_s_encoding_lacks_is_escaped(tmp_path, encoding, printed):
    script = STREAMS.format(path=str(tmp_path / "file"), then="pass")
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, printed + b" printed\n")


TWICE = """
import sys
from absl import flags
from ml_collections import config_flags
from transformer_jax.errors import run_command

flags.DEFINE_string("output", "o", "")
flags.DEFINE_bool("scores", False, "")
flags.DEFINE_multi_string("reference", None, "")
config_flags.DEFINE_config_file("config", None, "")

def main(_):
    print(flags.FLAGS.output, flags.FLAGS.reference, flags.FLAGS.config)

run_command(main)
"""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--output=a", "--output=b"], "--output is given twice, as a and as b; give it once"),
        (["--output=a", "--output", "b"], "--output is given twice, as a and as b; give it once"),
        (["--scores", "--noscores"], "--scores is given twice, as true and as false; give it once"),
        (["--output=a", "--output=a", "--scores", "--scores", "--output=a"], None),
        (
            ["--config={config}", "--config=other.py"],
            "--config is given twice, as {config} and as other.py; give it once",
        ),
        (["--reference=a", "--reference=b", "--output=o"], None),
        (["--config={config}", "--config.x=1", "--config.x=2", "--config.y.z=3"], None),
    ],
)
def test_a_flag_has_one_value(tmp_path, arguments, error):
    """The last one would win in silence. Values of a config are overridden as ml_collections does it."""
    config = tmp_path / "config.py"
    config.write_text(
        "import ml_collections\n"
        "def get_config():\n"
        "    return ml_collections.ConfigDict({'x': 0, 'y': {'z': 0}})\n"
    )
    flags = [argument.format(config=config) for argument in arguments]
    run = subprocess.run(
        [sys.executable, "-c", TWICE, *flags], capture_output=True, text=True, check=False
    )
    assert run.stderr == (f"error: {error.format(config=config)}\n" if error else "")
    assert run.returncode == (2 if error else 0)
    if "--config.x=2" in flags:
        assert "x: 2" in run.stdout and "z: 3" in run.stdout
