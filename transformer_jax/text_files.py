# SPDX-License-Identifier: Apache-2.0
"""Text that is read: strictly UTF-8, plain or in gzip, and called what it is where it is something else."""

import codecs
import itertools
import re
import select
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformer_jax.errors import UserError

_BLOCK = 1 << 17  # bytes that are read at a time
_HEAD = 4096  # bytes by which a file's kind is told
_GZIP = b"\x1f\x8b"
# How files begin that are no text, and what to do about it.
_BINARY = {
    b"\xfd7zXZ\0": "compressed with xz; unpack it with xz -d",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it with zstd -d",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it with lz4 -d",
    b"BZh": "compressed with bzip2; unpack it with bzip2 -d",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it with 7z x",
    b"PK\x03\x04": "a zip archive, as .docx and .xlsx are; unpack it, or save its text",
    b"\x89PNG": "a PNG picture; give a text",
    b"\xff\xd8\xff": "a JPEG picture; give a text",
    b"GIF8": "a GIF picture; give a text",
    b"%PDF-": "a PDF document; save its text, such as with pdftotext",
    b"\x7fELF": "a program; give a text",
}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WITHOUT_MARK = "utf-16le", "utf-16be", "utf-32le", "utf-32be"
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class TextFile:
    """The lines of a file, of stdin, or of what a gzip file has in it; only a line feed ends one.

    Use as a context manager.
    """

    def __init__(self, path: str | Path | None):
        """Open it; None: stdin.

        Raises:
          UserError: it cannot be read.
        """
        if not path and sys.__stdin__ is None:
            raise UserError("stdin is closed; name a file with --input")
        self.name = path or "stdin"
        self._compressed = False
        try:
            file = path or sys.stdin.fileno()
            self._file = open(file, "rb", buffering=0, closefd=bool(path))  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from None

    def __enter__(self) -> "TextFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[str]:
        """The text of every line, once; see `decode_line`."""
        lines = itertools.chain.from_iterable(self.parts())
        for number, line in enumerate(lines, start=1):
            yield decode_line(line, number, self.name)

    def parts(self) -> Iterator[list[bytes]]:
        """The lines, once, without line feeds: those that end in each block that is read, if any.

        Raises:
          UserError: the file cannot be read, is damaged, or is no UTF-8 text by its first bytes.
        """
        rest: list[bytes] = []  # the beginning of a line whose end was not read yet
        nothing: tuple[bytes, ...] = b"", codecs.BOM_UTF8  # are no first line
        for number, block in enumerate(self._blocks()):
            if number == 0:
                _refuse_other_kinds(block[:_HEAD], self.name)
            first, *others = block.split(b"\n")
            rest.append(first)
            ended = []
            if others:
                ended = [b"".join(rest), *others[:-1]]
                rest, nothing = [others[-1]], (b"",)
            yield ended
        last = b"".join(rest)
        if last not in nothing:
            yield [last]  # a line without a line feed

    def ready(self, seconds: float) -> bool:
        """Whether there is more within so many seconds, or the end."""
        if sys.platform == "win32":  # where select knows sockets alone
            return self._compressed
        return self._compressed or bool(select.select([self._file], [], [], seconds)[0])

    def _blocks(self) -> Iterator[bytes]:
        raw = iter(self._read, b"")
        first = next(raw, b"")
        if first == _GZIP[:1]:  # from a pipe that gives single bytes
            first += next(raw, b"")
        self._compressed = first.startswith(_GZIP)
        blocks = itertools.chain([first], raw)
        return self._inflate(blocks) if self._compressed else blocks

    def _read(self) -> bytes:
        try:
            return self._file.read(_BLOCK)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from None

    def _inflate(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """What the members of a gzip file hold; zeros may follow them."""
        inflater = zlib.decompressobj(wbits=31)
        for block in blocks:
            while block:
                if inflater.eof:
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    inflater = zlib.decompressobj(wbits=31)
                try:
                    text = inflater.decompress(block, _BLOCK)
                except zlib.error as error:
                    raise UserError(
                        f"{self.name} cannot be read: the gzip file is damaged ({error}); copy it again"
                    ) from None
                if text:
                    yield text
                block = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        if not inflater.eof:
            raise UserError(
                f"{self.name} cannot be read: the gzip file ends in the middle; copy it again"
            )


def _refuse_other_kinds(head: bytes, name: str | Path) -> None:
    """Raises: UserError that says what it is, if a file with these first bytes is no UTF-8 text."""
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            raise UserError(f"{name} is no text but {kind}")
    encoding = _wide_encoding(head)
    if encoding:
        raise UserError(
            f"{name} is {encoding[:6].upper()}, not UTF-8; convert the file with iconv -f {encoding} -t utf-8"
        )


def _wide_encoding(head: bytes) -> str | None:
    """iconv's name of the UTF-16 or UTF-32 that a file with these first bytes is in, or None."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" not in head or len(head) < 4:
        return None
    # What is UTF-8 may have a zero somewhere; of what is not, any line feed or space tells.
    ascii_share = {encoding: _ascii_share(head, encoding) for encoding in _WITHOUT_MARK}
    best = max(ascii_share, key=ascii_share.__getitem__)
    least = 0.5 if _ascii_share(head, "utf-8") >= 0 else 0.0
    return best if ascii_share[best] > least else None


def _ascii_share(head: bytes, encoding: str) -> float:
    """How many of the characters are ASCII, if these may be the first bytes of such text; else -1."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return -1.0
    if encoding != "utf-8" and not all(char.isprintable() or char.isspace() for char in text):
        return -1.0
    return sum(map(str.isascii, text)) / max(1, len(text))


def decode_line(line: bytes, number: int, name: str | Path) -> str:
    """The text of a file's line, from 1; only a line feed ends one, a form feed or U+2028 is text.

    A carriage return at its end is no text, nor is a byte order mark at the beginning of the first.

    Raises:
      UserError: it is not UTF-8.
    """
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}, line {number}, is not UTF-8 (byte {error.start + 1}: 0x{line[error.start]:02x}); "
            + _remedy(line)
        ) from None


def _remedy(line: bytes) -> str:
    """What to do about a file with a line that is not UTF-8."""
    if _CONTROL.search(line):
        return "nor does it look like text; give a text file"
    if not line.decode(errors="ignore").isascii():
        return "the rest of the line is; iconv -c -f utf-8 -t utf-8 leaves out what is not"
    # Where Latin-1 has control characters, Windows has quotation marks and dashes.
    encoding = "cp1252" if re.search(rb"[\x80-\x9f]", line) else "latin1"
    return f"convert the file from its encoding, such as with iconv -f {encoding} -t utf-8"
