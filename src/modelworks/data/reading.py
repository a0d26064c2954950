"""Rows out of a file, one at a time: JSON Lines, JSON, CSV, TSV and Parquet, whatever the size."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import orjson

from modelworks.core.errors import Invalid, NotFound, TooLarge

MAX_ROW_CHARACTERS = 16 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_KINDS = "JSON Lines, JSON, CSV, TSV and Parquet can be read"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True, slots=True)
class RawRow:
    """What stands at `where` ("line 12"), or `problem`: why it cannot be read."""

    where: str
    value: object
    problem: str = ""


def read_rows(source: Path) -> Iterator[RawRow]:
    """Yield the rows of a file, choosing the reader by its suffix and its first bytes.

    Raises:
        NotFound: there is no such file.
        Invalid: the file as a whole cannot be read: its kind, its encoding, or JSON that breaks off.
    """
    if not source.is_file():
        raise NotFound(f"there is no file {source}")
    suffix = source.suffix.lower()
    with source.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return _read_parquet(source)
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise Invalid(f"{source} is compressed; unpack it first ({_KINDS})")
    if head.startswith(_UTF16):
        raise Invalid(f"{source} is not UTF-8 (UTF-16 mark at byte 0); save it as UTF-8")
    if suffix in {".csv", ".tsv"}:
        return _read_table(source, "\t" if suffix == ".tsv" else None)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    by_line = suffix in {".jsonl", ".ndjson"}
    if not start and (by_line or suffix == ".json"):
        return iter(())
    if start.startswith(b"[") and not by_line:
        return _read_json(source)
    if start.startswith(b"{") and _is_pretty_printed(source):
        return _read_json(source)
    if by_line or start.startswith(b"{"):
        return _read_json_lines(source)
    raise Invalid(f"{source} is of no known kind; {_KINDS}: name it .jsonl, .json, .csv, .tsv or .parquet")


def _is_pretty_printed(source: Path) -> bool:
    first = next((line for line in _lines(source) if line.strip()), "")
    if first.rstrip().endswith("}"):
        return False
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return True
    return False


def _read_json_lines(source: Path) -> Iterator[RawRow]:
    for number, line in enumerate(_lines(source), start=1):
        if not line or line.isspace():
            continue
        try:
            yield RawRow(f"line {number}", orjson.loads(line))
        except orjson.JSONDecodeError as error:
            yield RawRow(f"line {number}", None, f"is not JSON: {error.msg} (column {error.colno})")


def _read_json(source: Path) -> Iterator[RawRow]:
    """Read an array, or objects one after the other, decoding value by value."""
    decoder = json.JSONDecoder()
    chunks = _chunks(source)
    buffer, position, line = "", 0, 1
    is_array: bool | None = None
    is_closed = False
    while True:
        at = _skip(buffer, position, " \t\r\n," if is_array is not None else " \t\r\n")
        line += buffer.count("\n", position, at)
        position = at
        if position < len(buffer):
            if is_closed:
                raise Invalid(f"{source}, line {line}: there is more after the array's end")
            if is_array is None:
                is_array = buffer[position] == "["
                position += is_array
                continue
            if is_array and buffer[position] == "]":
                is_closed, position = True, position + 1
                continue
            value, end, fault = _decode(decoder, buffer, position)
            if fault is None and end < len(buffer):
                yield RawRow(f"line {line}", value)
                line += buffer.count("\n", position, end)
                position = end
                continue
        else:
            fault = None
        # The value may go on: read at least as much again, so that a long row costs no more than twice its length.
        rest = buffer[position:]
        if len(rest) > MAX_ROW_CHARACTERS:
            raise TooLarge(f"{source}, line {line}: a row is longer than {MAX_ROW_CHARACTERS} characters")
        more = next(chunks, "")
        while more and len(more) < len(rest) and (chunk := next(chunks, "")):
            more += chunk
        if more:
            buffer, position = rest + more, 0
            continue
        if fault is not None:
            raise Invalid(f"{source}, line {line + fault.doc.count(chr(10), position, fault.pos)}: {fault.msg}")
        if rest:  # a value at the very end of the file
            yield RawRow(f"line {line}", value)
        if is_array and not is_closed:
            raise Invalid(f"{source}, line {line}: the array breaks off; its ']' is missing")
        return


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _decode(decoder: json.JSONDecoder, text: str, position: int) -> tuple[object, int, json.JSONDecodeError | None]:
    try:
        value, end = decoder.raw_decode(text, position)
    except json.JSONDecodeError as error:
        return None, position, error
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        return None, position, json.JSONDecodeError("nested too deeply, or a number too long", text, position)
    return value, end, None


def _read_table(source: Path, delimiter: str | None) -> Iterator[RawRow]:
    lines = (line + "\n" for line in _lines(source))
    first = next(lines, "")
    if not first:
        return
    chosen = delimiter or max(",;\t|", key=first.count)
    # a cell is at most a row; the module's own limit of 128 KiB is short for a text
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    reader = csv.reader(chain([first], lines), delimiter=chosen)
    try:
        header = [name.strip() for name in next(reader)]
        if len(set(header)) < len(header) or "" in header:
            raise Invalid(f"{source}, line 1: the column names {header} are empty or repeat; name each column once")
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"line {start}", reader.line_num + 1
            if len(cells) == len(header):
                yield RawRow(where, dict(zip(header, cells, strict=True)))
            elif cells:
                yield RawRow(where, None, f"has {len(cells)} cells, the header has {len(header)}")
    except csv.Error as error:
        raise Invalid(f"{source}, line {reader.line_num}: {error}; is a quote left open?") from None


def _read_parquet(source: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(f"row {number}", value)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Invalid(f"{source} is not a whole Parquet file: after row {number}: {error}") from None


def _lines(source: Path) -> Iterator[str]:
    rest = ""
    for chunk in _chunks(source):
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
        if len(rest) > MAX_ROW_CHARACTERS:
            raise TooLarge(f"{source}: a line is longer than {MAX_ROW_CHARACTERS} characters")
    if rest:
        yield rest


def _chunks(source: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    with source.open("rb") as file:
        while True:
            block = file.read(_CHUNK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # the decoder may have kept the first bytes of a character from the block before
                at = offset + len(block) - len(error.object) + error.start
                raise Invalid(
                    f"{source} is not UTF-8: byte {at} is {error.object[error.start]:#04x}; save it as UTF-8"
                ) from None
            offset += len(block)
            if text:
                yield text
            if not block:
                return
