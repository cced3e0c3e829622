# SPDX-License-Identifier: Apache-2.0
"""A file that goes on where a process was killed: what counts, what is cut off, what is refused."""

import errno
import multiprocessing
import os
import signal

import pytest

from transformer_jax.errors import UserError
from transformer_jax.inference.resumable import ResumableFile


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_it_is_finished_and_not_before(tmp_path):
    path = tmp_path / "out"
    with ResumableFile(path, {"alpha": 0.6}) as file:
        assert file.done == {}
        file.append(b"one\n", {"lines": 1})
        file.append("zwei €\n".encode(), {"lines": 2})
        assert not path.exists()
        file.finish()
    assert path.read_text() == "one\nzwei €\n"
    assert names(tmp_path) == ["out"]


def test_it_goes_on_behind_the_last_part_that_counts(tmp_path):
    path = tmp_path / "out"
    with ResumableFile(path, {"a": [1, None]}) as file:
        file.append(b"one\n", {"lines": 1})
    with (tmp_path / "out.partial").open("ab") as partial:
        partial.write(b"half a li")  # of a process that was killed before it said so
    with ResumableFile(path, {"a": [1, None]}) as file:
        assert file.done == {"lines": 1}
        file.append(b"two\n", {"lines": 2})
        file.finish()
    assert path.read_bytes() == b"one\ntwo\n"


def _write_for_ever(path):
    with ResumableFile(path, {}) as file:
        for number in range(file.done.get("lines", 0), 10**9):
            file.append(b"%d\n" % number, {"lines": number + 1})


def test_kill_9_at_any_moment_loses_no_part_that_counts(tmp_path):
    path = tmp_path / "out"
    done = 0
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        process.start()
        process.join(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with ResumableFile(path, {}) as file:
            assert file.done["lines"] > done
            done = file.done["lines"]
            content = (tmp_path / "out.partial").read_text()
            assert content == "".join(f"{number}\n" for number in range(done))


def test_other_settings_are_refused_with_their_name(tmp_path):
    path = tmp_path / "out"
    with ResumableFile(path, {"alpha": 0.6, "beam_size": 4}) as file:
        file.append(b"one\n", {"lines": 1})
    with pytest.raises(UserError, match=r"out\.partial was begun with alpha=0\.6, not 1\.0"):
        ResumableFile(path, {"alpha": 1.0, "beam_size": 4})
    with pytest.raises(UserError, match="top_k=None, not 5"):
        ResumableFile(path, {"alpha": 0.6, "beam_size": 4, "top_k": 5})
    assert (tmp_path / "out.partial").read_bytes() == b"one\n", "what was written is gone"


def test_two_processes_do_not_write_the_same_file(tmp_path):
    with (
        ResumableFile(tmp_path / "out", {}),
        pytest.raises(UserError, match=r"another process writes .*out\.partial"),
    ):
        ResumableFile(tmp_path / "out", {})


def test_a_failure_before_the_first_part_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="of the work"), ResumableFile(tmp_path / "out", {}):
        raise ValueError("of the work")
    assert names(tmp_path) == []


def test_a_damaged_journal_or_a_lost_part_begins_anew(tmp_path):
    path = tmp_path / "out"
    for damage in ("journal", "part"):
        with ResumableFile(path, {}) as file:
            file.append(b"one\n", {"lines": 1})
        if damage == "journal":
            (tmp_path / "out.partial.json").write_text('{"bytes"')
        else:
            (tmp_path / "out.partial").unlink()
        with ResumableFile(path, {}) as file:
            assert file.done == {}
            assert (tmp_path / "out.partial").read_bytes() == b""


def test_where_nothing_can_be_written_the_error_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        ResumableFile(tmp_path / "missing" / "out", {})


def test_a_full_disk_is_told_and_what_was_written_counts(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ResumableFile(tmp_path / "out", {}) as file:
        file.append(b"one\n", {"lines": 1})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"out\.partial cannot be written: No space left"):
            file.append(b"two\n", {"lines": 2})
    with ResumableFile(tmp_path / "out", {}) as file:
        assert file.done == {"lines": 1}
        assert (tmp_path / "out.partial").read_bytes() == b"one\n"
