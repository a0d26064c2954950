"""Rows out of a file or a folder, one at a time: JSON, CSV, TSV, Parquet, Arrow and text, whatever the size."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import orjson

from modelworks.core.errors import Invalid, NotFound, TooLarge
from modelworks.data.decoding import MAX_ROW_CHARACTERS, TextFile, head_of, open_text
from modelworks.data.folder import files_in, suffix_of
from modelworks.data.record import Split

_KINDS = "JSON Lines, JSON, CSV, TSV, Parquet, Arrow and text can be read, the text files also packed as .gz"
# One object around the rows, as SQuAD and others have it.
_WRAPPED = re.compile(r'\s*\{\s*(?:"version"\s*:\s*"[^"]*"\s*,\s*)?"(?:data|rows|examples)"\s*:\s*\[(?=\s*\{)')
_UNWRAPPED = re.compile(r'(\s*"[^"]*"\s*:\s*[^\[\]{}]*)?\}\s*')


@dataclass(frozen=True, slots=True)
class RawRow:
    """What stands at `where` ("line 12"), or `problem`: why it cannot be read. The side is that of a named file."""

    where: str
    value: object
    problem: str = ""
    side: Split | None = None


def read_rows(source: Path, notes: list[str] | None = None) -> Iterator[RawRow]:
    """Yield the rows of a file, choosing the reader by its suffix and its first bytes; of a folder, those of its files.

    What was guessed or left out is added to `notes`.

    Raises:
        NotFound: there is no such file.
        Invalid: the file as a whole cannot be read: its kind, its encoding, or JSON that breaks off.
    """
    notes = [] if notes is None else notes
    if source.is_dir():
        return _read_folder(source, notes)
    if not source.is_file():
        raise NotFound(f"there is no file {source}")
    return (inner for row in _read_file(source, notes) for inner in _unnested(row))


def _read_folder(folder: Path, notes: list[str]) -> Iterator[RawRow]:
    for path, side in files_in(folder, notes):
        for row in read_rows(path, notes):
            yield replace(row, where=f"{path.relative_to(folder)}, {row.where}", side=side)


def _read_file(source: Path, notes: list[str]) -> Iterator[RawRow]:
    suffix, head = suffix_of(source), head_of(source)
    if head.startswith(b"PAR1"):
        return _read_columnar(source, "Parquet file")
    if suffix == ".arrow":
        return _read_columnar(source, "Arrow stream")
    if head.startswith((b"PK\x03\x04", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")):
        raise Invalid(f"{source} is compressed; unpack it first ({_KINDS})")
    file = open_text(source, notes)
    if suffix in {".csv", ".tsv"}:
        return _read_table(file, "\t" if suffix == ".tsv" else None)
    start = next(file.chunks(), "").lstrip()
    by_line = suffix in {".jsonl", ".ndjson"}
    if not start and (by_line or suffix in {".json", ".txt"}):
        return iter(())
    if suffix == ".txt" and not (
        re.match(r"\[\s*\{", start) or (start.startswith("{") and not _is_pretty_printed(file))
    ):
        return _read_text(file)
    if not by_line and start.startswith(("[", "{")):
        if start.startswith("[") or _WRAPPED.match(start) or _is_pretty_printed(file):
            return _uncolumned(_read_json(file))
        return _uncolumned(_read_json_lines(file))
    if by_line or start.startswith("{"):
        return _read_json(file) if start.startswith("{") and _is_pretty_printed(file) else _read_json_lines(file)
    raise Invalid(f"{source} is of no known kind; {_KINDS}: name it .jsonl, .json, .csv, .tsv, .parquet or .txt")


def _unnested(row: RawRow) -> Iterator[RawRow]:
    """SQuAD nests: an article has paragraphs, each with a context and questions on it."""
    if not isinstance(row.value, dict) or not isinstance(paragraphs := row.value.get("paragraphs"), list):
        yield row
        return
    for paragraph in paragraphs:
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
            yield replace(row, value=None, problem="has a paragraph without a list of questions (qas)")
            continue
        for each in asked:
            yield replace(row, value={**each, "context": paragraph.get("context")})


def _uncolumned(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """A file of a single object may be a table by columns: {"text": ["a", "b"]}, or {"text": {"0": "a", "1": "b"}}."""
    first = list(islice(rows, 2))
    columns = _columns(first[0].value) if len(first) == 1 else None
    if columns is None:
        yield from chain(first, rows)
        return
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        yield RawRow(f"row {number}", dict(zip(columns, cells, strict=True)))


def _columns(value: object) -> Mapping[str, list[object]] | None:
    if not isinstance(value, dict) or not value:
        return None
    columns = {
        name: list(cells.values()) if isinstance(cells, dict) and all(key.isdigit() for key in cells) else cells
        for name, cells in value.items()
    }
    if not all(isinstance(cells, list) and cells for cells in columns.values()):
        return None
    if len({len(cells) for cells in columns.values()}) > 1:
        return None
    # A row may consist of lists as well, but of messages: {"prompt": [{...}], "completion": [{...}]}.
    is_row = all(isinstance(cell, dict) for cells in columns.values() for cell in cells)
    return None if is_row else columns


def _is_pretty_printed(file: TextFile) -> bool:
    first = next((line for line in file.lines() if line.strip()), "")
    if first.rstrip().endswith("}"):
        return False
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return True
    return False


def _read_json_lines(file: TextFile) -> Iterator[RawRow]:
    for number, line in enumerate(file.lines(), start=1):
        if not line or line.isspace():
            continue
        try:
            yield RawRow(f"line {number}", orjson.loads(line))
        except orjson.JSONDecodeError as error:
            yield RawRow(f"line {number}", None, f"is not JSON: {error.msg} (column {error.colno})")


def _read_json(file: TextFile) -> Iterator[RawRow]:
    """Read an array, also one that an object wraps, or objects one after the other, decoding value by value."""
    source = file.path
    decoder = json.JSONDecoder()
    chunks = file.chunks()
    buffer, position, line = next(chunks, ""), 0, 1
    is_array: bool | None = None
    is_closed = False
    wrapped = _WRAPPED.match(buffer)
    if wrapped:
        is_array, position = True, wrapped.end()
        line += wrapped.group().count("\n")
    while True:
        at = _skip(buffer, position, " \t\r\n," if is_array is not None else " \t\r\n")
        line += buffer.count("\n", position, at)
        position = at
        if position < len(buffer):
            if is_closed and wrapped and _UNWRAPPED.fullmatch(buffer[position:] + next(chunks, "")):
                return
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
            raise TooLarge(
                f"{source}, line {line}: a row is longer than {MAX_ROW_CHARACTERS} characters; write JSON Lines"
            )
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


def _read_table(file: TextFile, delimiter: str | None) -> Iterator[RawRow]:
    source = file.path
    lines = (line + "\n" for line in file.lines())
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


def _read_columnar(source: Path, what: Literal["Parquet file", "Arrow stream"]) -> Iterator[RawRow]:
    """Read Parquet, or what the `datasets` library writes with save_to_disk."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with ExitStack() as stack:
            if what == "Parquet file":
                batches = stack.enter_context(pyarrow.parquet.ParquetFile(source)).iter_batches(batch_size=1024)
            else:
                mapped = stack.enter_context(pyarrow.memory_map(str(source)))
                batches = stack.enter_context(pyarrow.ipc.open_stream(mapped))
            for batch in batches:
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(f"row {number}", value)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Invalid(f"{source} is not a whole {what}: after row {number}: {error}") from None


def _read_text(file: TextFile) -> Iterator[RawRow]:
    """A row a paragraph where blank lines set them apart, else a row a line."""
    first = "\n".join(line.strip() for line in islice(file.lines(), 1000)).strip()
    by_line = "\n\n" not in first
    paragraph: list[str] = []
    length = 0
    for number, line in enumerate(chain(file.lines(), [""]), start=1):
        text = line.rstrip("\r")
        if text.strip():
            paragraph.append(text)
            length += len(text) + 1
        if length > MAX_ROW_CHARACTERS:
            raise TooLarge(f"{file.path}, line {number}: a paragraph is longer than {MAX_ROW_CHARACTERS} characters")
        if paragraph and (by_line or not text.strip()):
            yield RawRow(f"line {number - len(paragraph) + by_line}", {"text": "\n".join(paragraph)})
            paragraph, length = [], 0
