from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from modelworks.core.errors import Invalid, TooLarge
from modelworks.data import decoding
from modelworks.data.importer import import_file
from modelworks.data.reading import read_rows
from modelworks.data.record import count
from modelworks.data.spec import ImportSpec

ROWS = [{"text": "a", "n": 1}, {"text": "é", "n": None}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("columns.json", {"text": ["a", "é"], "n": [1, None]}),
        ("pandas.json", {"text": {"0": "a", "1": "é"}, "n": {"0": 1, "1": None}}),
        ("wrapped.json", {"data": ROWS}),
        ("wrapped.json", {"version": "1.1", "rows": ROWS, "count": 2}),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_tables_by_columns_and_rows_in_an_object_are_unfolded(
    tmp_path: Path, name: str, content: object, indent: int | None
) -> None:
    source = write(tmp_path / name, json.dumps(content, ensure_ascii=False, indent=indent))

    assert [row.value for row in read_rows(source)] == ROWS


@pytest.mark.parametrize(
    "row", [{"prompt": [{"role": "user"}], "completion": [{"role": "assistant"}]}, {"messages": [{}, {}]}, {"text": []}]
)
def test_a_single_row_of_messages_is_no_table_by_columns(tmp_path: Path, row: object) -> None:
    assert [each.value for each in read_rows(write(tmp_path / "one.json", json.dumps(row)))] == [row]


def test_squad_gives_a_row_a_question(tmp_path: Path) -> None:
    asked: list[dict[str, object]] = [{"question": "q1", "answers": []}, {"question": "q2", "answers": [{"text": "b"}]}]
    articles = [{"title": "t", "paragraphs": [{"context": "c", "qas": asked}, {"context": "d"}]}]
    source = write(tmp_path / "squad.json", json.dumps({"version": "v2.0", "data": articles}, indent=1))

    rows = list(read_rows(source))

    assert [row.value for row in rows] == [{**asked[0], "context": "c"}, {**asked[1], "context": "c"}, None]
    assert rows[2].problem == "has a paragraph without a list of questions (qas)"


@pytest.mark.parametrize(
    ("encoding", "note"),
    [("utf-8", ""), ("utf-8-sig", ""), ("utf-16", ""), ("utf-32", ""), ("utf-16-le", "UTF-16-LE"),
     ("utf-16-be", "UTF-16-BE"), ("latin-1", "Windows-1252"), ("cp1252", "Windows-1252")],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_the_encoding_is_found_and_a_guess_is_told(tmp_path: Path, encoding: str, note: str, packed: bool) -> None:
    content = "text;n\ncafé;1\n".encode(encoding)
    notes: list[str] = []

    source = write(tmp_path / ("a.csv.gz" if packed else "a.csv"), gzip.compress(content) if packed else content)

    assert [row.value for row in read_rows(source, notes)] == [{"text": "café", "n": "1"}]
    assert len(notes) == bool(note)
    assert all(note in each for each in notes)


def test_a_fault_in_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "ä".encode() * 1_100_000 + b"\xe4\n")

    with pytest.raises(Invalid, match="not UTF-8: byte 2200000 is 0xe4"):
        read_rows(source)


def test_gzip_of_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_UNPACKED_BYTES", 3 << 20)
    source = write(tmp_path / "bomb.jsonl.gz", gzip.compress(b" " * (8 << 20)))

    with pytest.raises(TooLarge, match="split it"):
        list(read_rows(source))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("one\ntwo\r\n", [("line 1", "one"), ("line 2", "two")]),
        ("\none\nmore\n\n\ntwo", [("line 2", "one\nmore"), ("line 6", "two")]),
        ("[1] is a note\n{x}\n", [("line 1", "[1] is a note"), ("line 2", "{x}")]),
        ('{"text": "x"}\n', [("line 1", "x")]),
        ('[{"text": "x"}]', [("line 1", "x")]),
    ],
)
def test_text_is_a_row_a_line_or_a_paragraph(tmp_path: Path, content: str, rows: list[tuple[str, str]]) -> None:
    read = list(read_rows(write(tmp_path / "a.txt", content)))

    assert [(row.where, row.value) for row in read] == [(where, {"text": text}) for where, text in rows]


def test_a_folder_is_read_file_by_file_with_the_sides_of_their_names(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"text": "a"}, {"text": "b"}])
    write(tmp_path / "rows/README.md", "# about")
    write(tmp_path / "rows/dataset_info.json", "{}")
    write(tmp_path / "rows/.cache/x.jsonl", "not ours")
    (tmp_path / "rows/data").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "rows/data/train-00000-of-00002.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "rows/data/train-00001-of-00002.arrow", table.schema) as stream:
        stream.write_table(table)
    write(tmp_path / "rows/data/test.jsonl.gz", gzip.compress(b'{"text": "c"}'))
    (tmp_path / "made").mkdir()

    report = import_file(tmp_path / "rows", tmp_path / "made", ImportSpec())

    assert (count(tmp_path / "made", "train"), count(tmp_path / "made", "validation")) == (4, 1)
    assert "not read: README.md" in report.notes
    places = [(row.where, row.side) for row in read_rows(tmp_path / "rows")]
    assert places[0] == ("data/test.jsonl.gz, line 1", "validation")
    assert places[1] == ("data/train-00000-of-00002.parquet, row 1", "train")


def test_a_folder_that_names_one_side_is_split_like_a_file(tmp_path: Path) -> None:
    write(tmp_path / "rows/train/part.jsonl", "".join(f'{{"text": "{i}"}}\n' for i in range(200)))
    (tmp_path / "made").mkdir()

    report = import_file(tmp_path / "rows", tmp_path / "made", ImportSpec(validation_share=0.5))

    # 100 within four standard deviations of 7
    assert 72 < report.validation_rows < 128
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="holds no file of rows"):
        list(read_rows(tmp_path / "empty"))
