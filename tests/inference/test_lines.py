# SPDX-License-Identifier: Apache-2.0
"""Lines of text: nothing but a line feed ends one, and nothing but UTF-8 is text."""

import pytest

from transformer_jax.errors import UserError
from transformer_jax.inference.lines import check_writable, read_lines, write_lines


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
