# SPDX-License-Identifier: Apache-2.0
"""Folders that one process has to itself, also where the file system cannot help."""

import errno
import fcntl

import pytest

from transformer_jax import files
from transformer_jax.errors import UserError
from transformer_jax.files import alone_in


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
