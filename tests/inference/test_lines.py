# SPDX-License-Identifier: Apache-2.0
"""Lines of text: nothing but a line feed ends one, and nothing but UTF-8 is text."""

import os

import pytest

from transformer_jax.errors import UserError
from transformer_jax.inference import lines as lines_module
from transformer_jax.inference.lines import (
    Lines,
    check_writable,
    count_lines,
    read_lines,
    write_lines,
)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\nb", ["a", "", "b"]),
        ("a\n\n", ["a", ""]),
        ("a\rb\u2028c\x85d\x0be\nf", ["a\rb\u2028c\x85d\x0be", "f"]),
        ("\ufeffa\r\n\r\nb", ["a", "", "b"]),
    ],
)
def test_only_a_line_feed_ends_a_line(tmp_path, content, lines):
    path = tmp_path / "text"
    path.write_bytes(content.encode())
    assert read_lines(path) == lines


def test_what_is_written_can_be_read(tmp_path):
    lines = ["für", "", "x\u2028y"]
    write_lines(tmp_path / "text", lines)
    assert read_lines(tmp_path / "text") == lines
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_errors_name_the_file_the_line_and_the_byte(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a\n\nab\xff\n")
    with pytest.raises(UserError, match=r"text, line 3, is not UTF-8 \(byte 3: 0xff\)"):
        read_lines(path)
    with pytest.raises(UserError, match="missing cannot be read: No such file"):
        read_lines(tmp_path / "missing")
    with pytest.raises(UserError, match="cannot be written: there is no folder"):
        check_writable(tmp_path / "missing" / "file")
    with pytest.raises(UserError, match="cannot be written: it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_lines(tmp_path / "missing" / "file", ["a"])


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_lines_taken_in_parts_are_the_lines(tmp_path, most):
    path = tmp_path / "text"
    path.write_bytes("\ufeffa\r\n\nlang\n\nz".encode())
    parts = []
    with Lines(path) as lines:
        while part := lines.take(most):
            parts += part
        assert lines.taken == len(parts) == 5
        assert lines.take(most) == []
    assert parts == read_lines(path) == ["a", "", "lang", "", "z"]
    assert count_lines(path) == 5


def test_a_line_longer_than_what_is_read_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "_BLOCK", 3)
    (tmp_path / "text").write_text("ab\ncdefghijklmnop\n\nq")
    assert read_lines(tmp_path / "text") == ["ab", "cdefghijklmnop", "", "q"]


def test_the_digest_tells_lines_apart(tmp_path):
    digests = set()
    for number, content in enumerate(("a\nb\n", "a\nb", "ab\n\n", "a\n\nb", "a\r\nb")):
        path = tmp_path / str(number)
        path.write_text(content, newline="")
        with Lines(path) as lines:
            lines.take(1)
            lines.take(5)
            digests.add(lines.digest)
    assert len(digests) == 4, "a last line is the same with and without a line feed"


def test_a_pipe_that_pauses_is_answered():
    reader, writer = os.pipe()
    with Lines(f"/dev/fd/{reader}", patience=0.01) as lines:
        os.write(writer, b"one\ntwo\nthr")
        assert lines.take(10) == ["one", "two"]
        os.write(writer, b"ee\n")
        assert lines.take(10) == ["three"]
        os.close(writer)
        os.close(reader)
        assert lines.take(10) == []
