# SPDX-License-Identifier: Apache-2.0
"""Folders that one process has to itself, also where the system cannot help, and what else Windows lacks."""

import errno
import fcntl
import select
import sys

import pytest

from transformer_jax import files
from transformer_jax.errors import UserError
from transformer_jax.files import alone_in
from transformer_jax.inference.lines import Lines
from transformer_jax.inference.resumable import ResumableFile


def test_two_cannot_be_alone(tmp_path):
    with (
        alone_in(tmp_path),
        pytest.raises(UserError, match="another process is training"),
        alone_in(tmp_path),
    ):
        pass
    with alone_in(tmp_path):
        pass  # the first has left


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone_in(tmp_path):
        assert "cannot be locked here; let no other process use it" in caplog.text
    caplog.clear()
    monkeypatch.setattr(files, "fcntl", None)  # on Windows
    with alone_in(tmp_path):
        assert "cannot be locked here; let no other process use it" in caplog.text


def test_other_failures_of_a_lock_are_raised(tmp_path, monkeypatch):
    def broken(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), alone_in(tmp_path):
        pass


def test_windows_renames_no_open_file_and_selects_no_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(select, "select", None)
    (tmp_path / "in").write_text("one\ntwo\n")
    with Lines(tmp_path / "in", patience=0.5) as lines:
        assert lines.take(9) == ["one", "two"] and lines.take(9) == []
    with ResumableFile(tmp_path / "out", {}) as file:
        file.append(b"eins\n", {})
        file.finish()
        assert file._file.closed
    assert (tmp_path / "out").read_text() == "eins\n"
