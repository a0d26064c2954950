"""The text of a file, chunk by chunk: unpacked from gzip, and decoded by what its bytes show."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelworks.core.errors import Invalid, TooLarge

MAX_ROW_CHARACTERS = 16 * 1024 * 1024
# A few megabytes of gzip can hold a thousand times as much.
MAX_UNPACKED_BYTES = 64 * 1024**3
_CHUNK_BYTES = 1024 * 1024
_GZIP = b"\x1f\x8b"
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextFile:
    path: Path
    encoding: str

    def chunks(self) -> Iterator[str]:
        """Yield the text; raises Invalid at a byte that its encoding does not have."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        offset = 0
        for block in _blocks(self.path):
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # the decoder may have kept the first bytes of a character from the block before
                at = offset + len(block) - len(error.object) + error.start
                raise Invalid(
                    f"{self.path} is not {self.encoding.removesuffix('-sig').upper()}: byte {at} is "
                    f"{error.object[error.start]:#04x}; save it as UTF-8"
                ) from None
            offset += len(block)
            if text:
                yield text

    def lines(self) -> Iterator[str]:
        rest = ""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split("\n")
            yield from whole
            if len(rest) > MAX_ROW_CHARACTERS:
                raise TooLarge(f"{self.path}: a line is longer than {MAX_ROW_CHARACTERS} characters")
        if rest:
            yield rest


def head_of(path: Path) -> bytes:
    """The first bytes, unpacked."""
    return next(_blocks(path))[:4096]


def open_text(path: Path, notes: list[str]) -> TextFile:
    """Find out how a file is encoded; what had to be guessed goes to `notes`.

    Raises:
        Invalid: it is UTF-8 with a fault in it: read as anything else, it would be garbled without a word.
    """
    head = head_of(path)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return TextFile(path, encoding)
    # Most text has a zero in each second byte of UTF-16, and JSON and tables always have some.
    zeros = (head[0::2].count(0), head[1::2].count(0))
    if max(zeros) > len(head) / 5 and min(zeros) <= len(head) / 20:
        encoding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        notes.append(f"{path.name} is read as {encoding.upper()}, by its zero bytes")
        return TextFile(path, encoding)
    utf8 = TextFile(path, "utf-8-sig")
    try:
        for _ in utf8.chunks():
            pass
    except Invalid:
        lenient = codecs.getincrementaldecoder("utf-8")("ignore")
        if not all(lenient.decode(block).isascii() for block in _blocks(path)):
            raise
        notes.append(f"{path.name} is not UTF-8; it is read as Windows-1252 (Latin-1): look at its accents")
        return TextFile(path, "cp1252")
    return utf8


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes, and b"" at the end."""
    with path.open("rb") as raw:
        is_packed = raw.read(2) == _GZIP
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if is_packed else raw
        total = 0
        while True:
            try:
                block = file.read(_CHUNK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise Invalid(f"{path} is not a whole gzip file: {error}") from None
            total += len(block)
            if total > MAX_UNPACKED_BYTES:
                raise TooLarge(f"{path} holds more than {MAX_UNPACKED_BYTES >> 30} GiB; split it")
            yield block
            if not block:
                return
