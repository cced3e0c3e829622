# SPDX-License-Identifier: Apache-2.0
"""Lines of text: nothing but a line feed ends one, and nothing but UTF-8 is text."""

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from transformer_jax import text_files
from transformer_jax.errors import UserError
from transformer_jax.files import check_writable
from transformer_jax.inference.lines import (
    Lines,
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
    monkeypatch.setattr(text_files, "_BLOCK", 3)
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


TEXT = "".join(f"Zeile {number} größer\n" for number in range(50_000))


def in_members(content: bytes) -> bytes:
    """As `cat a.gz b.gz` and tapes make it: several members, then zeros."""
    return gzip.compress(content[:99]) + gzip.compress(content[99:]) + bytes(512)


@pytest.mark.parametrize("compress", [gzip.compress, in_members])
@pytest.mark.parametrize("name", ["text.gz", "text"])
def test_gzip_is_known_by_its_content(tmp_path, monkeypatch, compress, name):
    monkeypatch.setattr(text_files, "_BLOCK", 4096)
    path = tmp_path / name
    path.write_bytes(compress(TEXT.encode()))
    assert read_lines(path) == TEXT.splitlines()
    assert count_lines(path) == 50_000
    with Lines(path, patience=0.0) as lines:
        assert lines.take(60_000) == TEXT.splitlines(), "what is there already was not waited for"


def test_gzip_may_come_through_a_pipe_a_byte_at_a_time():
    reader, writer = os.pipe()
    with Lines(f"/dev/fd/{reader}") as lines:
        for byte in gzip.compress(b"one\ntwo"):
            os.write(writer, bytes([byte]))
        os.close(writer)
        os.close(reader)
        assert lines.take(10) == ["one", "two"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-100], "text cannot be read: the gzip file ends in the middle"),
        (lambda whole: whole[:2], "text cannot be read: the gzip file ends in the middle"),
        (
            lambda whole: whole[:100] + bytes(100) + whole[200:],
            r"text cannot be read: the gzip file is damaged \(Error -3",
        ),
        (lambda whole: whole + b"rubbish", "text cannot be read: the gzip file is damaged"),
    ],
)
def test_damaged_gzip_is_one_line(tmp_path, damage, message):
    path = tmp_path / "text"
    path.write_bytes(damage(gzip.compress(TEXT.encode())))
    with pytest.raises(UserError, match=message):
        read_lines(path)


@pytest.mark.parametrize("text", ["Ein größerer Hund.\n\nx\n", "我有一本书。\n他跑。\n", "אבג\n"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_wide_characters_are_named_with_what_mends_them(tmp_path, text, encoding):
    """By running what the error says."""
    if encoding == "utf-32-le" and not text.isascii() and "E" not in text:
        pytest.skip("without a mark only Latin text is known")
    path = tmp_path / "text"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=f"is UTF-{encoding[4:6]}, not UTF-8; .* iconv -f") as error:
        read_lines(path)
    command = str(error.value).partition("with ")[2].split()
    assert command[0] == "iconv" and command[3:] == ["-t", "utf-8"]
    if shutil.which("iconv"):
        mended = subprocess.run([*command, path], capture_output=True, check=True).stdout
        assert mended.decode() == text


def test_other_files_are_called_what_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a", "b")
    contents = {
        "a zip archive": (tmp_path / "zip").read_bytes(),
        "a PNG picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "compressed with bzip2; unpack it with bzip2 -d": bz2.compress(b"text"),
        "compressed with xz; unpack it with xz -d": lzma.compress(b"text"),
        "compressed with zstd": bytes.fromhex("28b52ffd"),
        "a program": Path(sys.executable).read_bytes()[:9999],
    }
    for kind, content in contents.items():
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(UserError, match=f"text is no text but {kind}"):
            read_lines(tmp_path / "text")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("größer".encode("latin1"), "iconv -f latin1 -t utf-8"),
        ("„größer“".encode("cp1252"), "iconv -f cp1252 -t utf-8"),
        ("größer, groß".encode()[:-1], "iconv -c -f utf-8 -t utf-8 leaves out what is not"),
        (bytes(range(100, 256)) + b"\0\1\2", "nor does it look like text"),
    ],
)
def test_the_remedy_is_that_of_the_line(tmp_path, line, remedy):
    (tmp_path / "text").write_bytes(b"fine\n" + line)
    with pytest.raises(UserError, match=rf"text, line 2, is not UTF-8 \(byte .*{remedy}"):
        read_lines(tmp_path / "text")


@pytest.mark.parametrize("text", ["a\0b c", "\0", "a\0", "BZ is no archive", "ÿþ", "\x1f"])
def test_utf8_stays_text(tmp_path, text):
    (tmp_path / "text").write_text(text)
    assert read_lines(tmp_path / "text") == [text]
