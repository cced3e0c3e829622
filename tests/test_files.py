# SPDX-License-Identifier: Apache-2.0
"""Folders that one process has to itself, also where the system cannot help; outputs of any kind."""

import errno
import fcntl
import os
import select
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from transformer_jax import files
from transformer_jax.errors import UserError
from transformer_jax.files import alone_in, check_writable, is_stream, open_stream, write_whole
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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_link_is_followed(tmp_path, exists, steps):
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real", tmp_path / "link"
    if exists:
        real.write_text("old")
    link.symlink_to("there/real")
    if steps == 2:
        (tmp_path / "second").symlink_to(link)
        link = tmp_path / "second"
    check_writable(link)
    write_whole(link, b"new")
    assert real.read_bytes() == b"new" and link.is_symlink()
    assert names(tmp_path / "there") == ["real"], "a temporary file is left"


def test_what_a_link_leads_to_is_what_must_be_writable(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "real")
    with pytest.raises(UserError, match=r"link cannot be written: there is no folder .*missing"):
        check_writable(tmp_path / "link")
    with pytest.raises(UserError, match="link cannot be written"):
        write_whole(tmp_path / "link", b"")
    (tmp_path / "missing").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "missing")
    with pytest.raises(
        UserError, match=r"link cannot be written: the folder .*missing is read-only"
    ):
        check_writable(tmp_path / "link")
    (tmp_path / "circle").symlink_to("circle")
    for write in (check_writable, is_stream, lambda path: write_whole(path, b"")):
        with pytest.raises(
            UserError, match="circle cannot be written: Too many levels of symbolic"
        ):
            write(tmp_path / "circle")
    assert (tmp_path / "circle").is_symlink()


def test_a_named_pipe_gets_what_is_written_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    got = []
    for path in (pipe, tmp_path / "link"):
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
        reader.start()
        check_writable(path)
        write_whole(path, b"a" * 100_000)  # more than a pipe holds
        reader.join()
    assert got == [b"a" * 100_000] * 2
    assert stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ["link", "pipe"]


def test_a_device_is_written_to(tmp_path, monkeypatch):
    assert (
        is_stream(Path("/dev/null")) and not is_stream(tmp_path) and not is_stream(tmp_path / "x")
    )
    write_whole(Path("/dev/null"), b"gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(UserError, match="/dev/full cannot be written: No space left on device"):
        write_whole(Path("/dev/full"), b"a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="/dev/null cannot be written: it is read-only"):
        check_writable("/dev/null")


def test_a_socket_is_refused_at_once(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError, match="socket cannot be written: it is a socket"):
            check_writable(tmp_path / "socket")


def test_a_descriptor_s_name_is_no_file_to_replace(tmp_path):
    """A file that a shell has opened to append to keeps what it has."""
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as file:
        path = Path(f"/dev/fd/{file.fileno()}")
        check_writable(path)
        write_whole(path, b"after\n")
    assert log.read_text() == "before\nafter\n"
    left, right = socket.socketpair()
    with left, right:
        write_whole(Path(f"/dev/fd/{left.fileno()}"), b"x")
        assert right.recv(9) == b"x"


def test_a_reader_that_goes_away_breaks_the_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), open_stream(Path(f"/dev/fd/{writer}")) as write:
        write(b"x")
    os.close(writer)


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


def test_a_descriptor_that_is_not_open_for_writing_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (tmp_path / "file").open() as file:
        path = f"/dev/fd/{file.fileno()}"
        with pytest.raises(UserError, match=f"{path} cannot be written: it is open for reading"):
            check_writable(path)
    with pytest.raises(UserError, match=f"{path} cannot be written: Bad file descriptor"):
        check_writable(path)


def test_a_file_that_is_mounted_by_itself_is_written_to(tmp_path, monkeypatch):
    """As `docker run -v $PWD/out:/out` makes one; the kernel refuses to rename over it."""
    replace = Path.replace

    def busy(self, other):
        if other.name == "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", busy)
    (tmp_path / "out").write_text("something longer")
    write_whole(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"new" and names(tmp_path) == ["out"]
    with ResumableFile(tmp_path / "out", {}) as file:
        file.append(b"part", {})
        file.finish()
    assert (tmp_path / "out").read_bytes() == b"part" and names(tmp_path) == ["out"]
