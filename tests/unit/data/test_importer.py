from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from modelworks.core.errors import Invalid, NotFound
from modelworks.data.importer import ImportReport, import_file
from modelworks.data.record import Conversation, Message, Preference, Record, Text, count, read_records
from modelworks.data.spec import ImportSpec

ALL_TRAIN = ImportSpec(validation_share=0)
PAIR = {"instruction": "Add 1 and 1", "output": "2"}


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def bring(source: Path, tmp_path: Path, spec: ImportSpec = ALL_TRAIN) -> tuple[ImportReport, list[Record]]:
    folder = tmp_path / f"staged{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    report = import_file(source, folder, spec)
    assert count(folder, "train") == report.train_rows
    assert count(folder, "validation") == report.validation_rows
    return report, [*read_records(folder, "train"), *read_records(folder, "validation")]


USER_A = {"role": "user", "content": "a"}
ANSWER_B = {"role": "assistant", "content": "b"}


def asked(prompt: str, answer: str) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)))


A_B = asked("a", "b")
A_B_TWICE = Conversation((Message("user", "a"), Message("assistant", "b", learned=False), *A_B.messages))
ANSWER_C = {"role": "assistant", "content": "c"}
BETTER_B = Preference((Message("user", "a"),), "b", "c")
SQUAD = {"context": "It was Bonn.", "question": "Which?"}
BONN = asked("Answer the question in words of the context.\n\nContext: It was Bonn.\n\nQuestion: Which?", "Bonn")


@pytest.mark.parametrize(
    ("name", "row", "record"),
    [
        ("alpaca", PAIR, asked("Add 1 and 1", "2")),
        ("alpaca", {"instruction": "Say", "input": "oui", "output": "yes", "text": "x"}, asked("Say\n\noui", "yes")),
        (
            "alpaca",
            {"instruction": "b", "output": "c", "system": "s", "history": [["q", "a"]]},
            Conversation((Message("system", "s"), *asked("q", "a").messages, *asked("b", "c").messages)),
        ),
        ("messages", {"messages": [USER_A, ANSWER_B]}, A_B),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER_B]},
            A_B,
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, A_B),
        ("prompt_completion", {"prompt": "a", "completion": "b"}, A_B),
        (
            "prompt_completion",
            {"prompt": [USER_A], "completion": [ANSWER_B]},
            A_B,
        ),
        ("input_output", {"input": "a", "output": 7}, asked("a", "7")),
        ("text", {"text": "Once upon a time"}, Text("Once upon a time")),
        ("messages", {"messages": [USER_A, {**ANSWER_B, "weight": 0}, USER_A, {**ANSWER_B, "weight": 1}]}, A_B_TWICE),
        ("summarization", {"text": "long", "summary": "b"}, asked("Summarize the following text:\n\nlong", "b")),
        ("summarization", {"article": "long", "summary": "b"}, asked("Summarize the following text:\n\nlong", "b")),
        ("question_answering", {"question": "a", "answer": "b"}, A_B),
        ("question_answering", {**SQUAD, "answers": {"text": [" ", "Bonn", "X"], "answer_start": [0, 9, 2]}}, BONN),
        ("question_answering", {**SQUAD, "answers": '["Bonn"]'}, BONN),
        ("question_answering", {**SQUAD, "answer": "Bonn", "answers": None}, BONN),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, BETTER_B),
        ("preference", {"prompt": [USER_A], "chosen": [ANSWER_B], "rejected": [ANSWER_C]}, BETTER_B),
        ("preference", {"prompt": "a", "chosen": [USER_A, ANSWER_B], "rejected": [USER_A, ANSWER_C]}, BETTER_B),
        ("preference", {"chosen": [USER_A, ANSWER_B], "rejected": [USER_A, ANSWER_C]}, BETTER_B),
        (
            "preference",
            {"input": {"messages": [USER_A]}, "preferred_output": [ANSWER_B], "non_preferred_output": [ANSWER_C]},
            BETTER_B,
        ),
        (
            "preference",
            {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
             "rejected": {"from": "gpt", "value": "c"}},
            BETTER_B,
        ),
        ("preference", {"chosen_messages": [USER_A, ANSWER_B], "rejected_messages": [USER_A, ANSWER_C]}, BETTER_B),
        (
            "preference",
            {"instruction": "a", "input": "x", "chosen": "b", "rejected": "c"},
            Preference((Message("user", "a\n\nx"),), "b", "c"),
        ),
        (
            "messages",
            {"messages": [
                {"role": "user", "content": [{"type": "text", "value": "a"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "b"}]},
            ]},
            asked("a", "<think>\nhm\n</think>\n\nb"),
        ),
        ("question_answering", {**SQUAD, "answers": [{"text": "Bonn", "answer_start": 9}]}, BONN),
    ],
)  # fmt: skip
def test_finds_each_format_by_looking(tmp_path: Path, name: str, row: object, record: Record) -> None:
    report, records = bring(write_lines(tmp_path / "rows.jsonl", [row]), tmp_path)

    assert report.format == name
    assert records == [record]


def test_reads_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"input": f'ask "{i}",\nä{i}', "output": f"say {i}"} for i in range(300)]
    jsonl = write_lines(tmp_path / "a.jsonl", rows)
    array, pretty, table, tabs, parquet = (
        tmp_path / f"a.{end}" for end in ("1.json", "2.json", "csv", "tsv", "parquet")
    )
    array.write_text("\ufeff" + json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    pretty.write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    for path, delimiter in ((table, ";"), (tabs, "\t")):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["input", "output"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)

    results = [bring(path, tmp_path)[1] for path in (jsonl, array, pretty, table, tabs, parquet)]

    assert len(results[0]) == 300
    assert all(records == results[0] for records in results)


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b", "output": "no"}])
    spec = ImportSpec(columns={"instruction": "question", "output": "answer"}, validation_share=0)

    assert bring(source, tmp_path, spec)[1] == [asked("a", "b")]


def test_unknown_columns_are_answered_with_what_is_there_and_what_is_needed(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"ask": "a", "reply": "b"}])

    with pytest.raises(Invalid, match=r"columns ask, reply.*alpaca needs instruction, output.*columns:"):
        bring(source, tmp_path)
    with pytest.raises(Invalid, match="did you mean reply"):
        bring(source, tmp_path, ImportSpec(columns={"input": "repyl"}))
    with pytest.raises(NotFound, match="did you mean alpaca"):
        bring(source, tmp_path, ImportSpec(format="alpacca"))
    with pytest.raises(Invalid, match="lacks instruction, output for alpaca"):
        bring(source, tmp_path, ImportSpec(format="alpaca"))


def test_a_bad_row_is_named_with_its_line_its_column_and_a_remedy(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{**PAIR, "output": f"{i}"} for i in range(60)])
    source.write_text(source.read_text() + '{"instruction": "a", "output": [1]}\n{"broken\n{"instruction": "a"}\n')

    report, _ = bring(source, tmp_path)

    assert [problem.where for problem in report.problems] == [
        "line 61, column output",
        "line 62",
        "line 63, column output",
    ]
    assert str(report.problems[0]) == "line 61, column output: is a list, not text (write it as a string)"
    assert (report.rows_read, report.train_rows, report.bad_rows) == (63, 60, 3)


def test_more_than_five_percent_of_bad_rows_fail_the_import_unless_they_are_to_be_skipped(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [PAIR, *([{"instruction": "a", "output": {}}] * 30)])

    with pytest.raises(Invalid, match="30 of 31 rows") as caught:
        bring(source, tmp_path)

    assert len(caught.value.problems) == 5
    assert bring(source, tmp_path, ImportSpec(on_bad_rows="skip"))[0].train_rows == 1


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": "user", "content": "a"}], "ends with a user message"),
        ([{"role": "boss", "content": "a"}], "unknown role 'boss'"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}], "message 1 .user. is empty"),
        ([{"content": "a"}], "has no role"),
        ("hello", "is a string, not a list"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "has a call that cannot be read: there is"),
        ([{"role": "user", "content": [{"type": "image"}]}], "parts that are not text"),
    ],
)
def test_bad_messages_are_told_apart(tmp_path: Path, messages: object, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        bring(write_lines(tmp_path / "rows.jsonl", [{"messages": messages}]), tmp_path)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"chosen": "b", "rejected": "c"}, "column prompt: is missing"),
        ({"prompt": [USER_A, ANSWER_B], "chosen": "b", "rejected": "c"}, "prompt: ends with the assistant's message"),
        ({"chosen": [USER_A, ANSWER_B], "rejected": [ANSWER_C]}, "rejected: answers another prompt than the chosen"),
        ({"input": {"messages": [USER_A], "tools": [{}]}, "chosen": "b", "rejected": "c"}, "input: has tools"),
        ({"prompt": "a", "chosen": {}, "rejected": "c"}, "chosen\\[0\\]: has no role"),
        ({"messages": [USER_A, {**ANSWER_B, "weight": 0.5}]}, r"messages\[1\]: has the weight 0.5"),
        ({"question": "a", "answers": {"texts": []}}, "answers: has a text that is null"),
        ({"question": "a", "answers": [1]}, "answers: holds a number"),
    ],
)
def test_bad_preferences_weights_and_answers_are_told_apart(tmp_path: Path, row: object, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        bring(write_lines(tmp_path / "rows.jsonl", [row]), tmp_path)


def test_rows_with_nothing_to_learn_count_as_empty(tmp_path: Path) -> None:
    preferences = [{"prompt": "a", "chosen": "b", "rejected": rejected} for rejected in ("b", " ", "c")]
    answers = [{"question": "a", "answers": {"text": texts}} for texts in ([], ["b"])]
    messages = [{"messages": [USER_A, {**ANSWER_B, "weight": weight}]} for weight in (0, 1)]

    empty = [bring(write_lines(tmp_path / "rows.jsonl", rows), tmp_path)[0].empty_rows
             for rows in (preferences, answers, messages)]  # fmt: skip

    assert empty == [2, 1, 1]


def test_duplicate_and_empty_rows_are_counted_and_duplicates_dropped_if_asked(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "input": ""}, {**PAIR, "output": " "}, {**PAIR, "output": None}, {**PAIR, "output": "two"}]
    source = write_lines(tmp_path / "rows.jsonl", rows)

    report, records = bring(source, tmp_path)
    dropping, fewer = bring(source, tmp_path, ImportSpec(drop_duplicates=True, validation_share=0))

    assert (len(records), report.duplicate_rows, report.empty_rows, report.leaked_rows) == (3, 1, 2, 0)
    assert (len(fewer), dropping.duplicate_rows) == (2, 1)
    assert report.notes == ("rows that repeat an earlier one: 1, kept (drop_duplicates leaves them out)",)


def test_a_row_on_both_sides_is_told(tmp_path: Path) -> None:
    sides = ["train", "validation", "train", "test", "train"]
    rows = [{"text": text, "split": side} for text, side in zip("aabcc", sides, strict=True)]

    report, _ = bring(write_lines(tmp_path / "rows.jsonl", rows), tmp_path)

    # a is on both sides; c is a test row, held out, and a train row
    assert (report.duplicate_rows, report.leaked_rows, report.validation_rows) == (2, 2, 2)
    assert any("that stand on the other: 2" in note for note in report.notes)


def test_copies_move_together_to_a_side_left_empty(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"text": text} for text in "aabb"])

    for seed in range(5):
        report, records = bring(source, tmp_path, ImportSpec(validation_share=0.5, seed=seed))
        assert (len(records), report.train_rows, report.validation_rows) == (4, 2, 2)


def test_a_format_is_chosen_by_what_its_rows_hold_and_not_by_names_alone(tmp_path: Path) -> None:
    rows = [{"messages": "see below", "instruction": "a", "output": i} for i in range(9)]

    report, _ = bring(write_lines(tmp_path / "rows.jsonl", [*rows, {"text": "x"}]), tmp_path,
                      ImportSpec(on_bad_rows="skip"))  # fmt: skip

    # text could read one row, messages none
    assert (report.format, report.bad_rows, report.rows_read) == ("alpaca", 1, 10)


def test_columns_that_nobody_reads_are_told(tmp_path: Path) -> None:
    report, _ = bring(write_lines(tmp_path / "rows.jsonl", [{**PAIR, "images": [], "input": "x"}]), tmp_path)

    assert report.notes == ("not used: the columns images",)


def test_a_split_column_is_honoured(tmp_path: Path) -> None:
    rows = [{"text": f"{i}", "split": ("train", "validation", "Test")[i % 3]} for i in range(30)]

    report, records = bring(write_lines(tmp_path / "rows.jsonl", rows), tmp_path, ImportSpec())

    assert report.validation_rows == 20
    assert {int(record.text) % 3 for record in records[:10] if isinstance(record, Text)} == {0}


def test_about_the_share_asked_for_is_held_out_and_at_least_one_row_of_two(tmp_path: Path) -> None:
    many = write_lines(tmp_path / "many.jsonl", [{"text": f"{i}"} for i in range(2000)])
    two = write_lines(tmp_path / "two.jsonl", [{"text": "a"}, {"text": "b"}])

    # 10 % of 2000, within four standard deviations (sqrt(2000 * 0.1 * 0.9) = 13.4)
    assert 146 < bring(many, tmp_path, ImportSpec())[0].validation_rows < 254
    for seed in range(20):
        assert bring(two, tmp_path, ImportSpec(seed=seed, validation_share=0.5))[0].validation_rows == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "\xc3\xa9"}\n{"text": "caf\xe9"}\n', "byte 28 is 0xe9"),
        ("a.csv", b"text\ncaf\xe9\x81\n", "not CP1252: byte 9 is 0x81"),
        ("a.json", b'{"data": [{"text": "a"}]} {}', "more after the array"),
        ("a.arrow", b"ARROW", "not a whole Arrow stream"),
        ("a.txt", b"\n \n", "holds no rows"),
        ("a.json", b'[{"text": "a"},\n{"text": ', "line 2"),
        ("a.json", b'[{"text": "a"}', "breaks off"),
        ("a.json", b'[{"text": "a"}] {}', "more after the array"),
        ("a.csv", b"text,text\na,b\n", "repeat"),
        ("a.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("a.bin", b"\x00\x01", "no known kind"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"[1]\n", "line 1: is a list; every row must be an object"),
        ("a.gz", b"\x1f\x8b..", "not a whole gzip file"),
        ("a.zip", b"PK\x03\x04", "is compressed; unpack it"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(Invalid, match=message):
        bring(tmp_path / name, tmp_path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        bring(tmp_path / "none.jsonl", tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_memory_grows_by_digests_and_not_by_rows(tmp_path: Path, kind: str) -> None:
    # 40 MB of 4,000 rows: their digests take 0.5 MB, the reader's chunks some more
    source = tmp_path / f"large.{kind}"
    with source.open("w") as file:
        file.write("[" if kind == "json" else "")
        for i in range(4_000):
            row = json.dumps({"instruction": f"Say {i}", "output": f"{i} " + "x" * 10_000})
            file.write(row + ("\n" if kind == "jsonl" else "]" if i == 3_999 else ", "))

    tracemalloc.start()
    report, peak = _import_and_measure(source, tmp_path)
    tracemalloc.stop()

    assert report.rows_read == 4_000
    assert peak < 16 * 1024 * 1024


def _import_and_measure(source: Path, tmp_path: Path) -> tuple[ImportReport, int]:
    folder = tmp_path / "large"
    folder.mkdir()
    report = import_file(source, folder, ImportSpec())
    return report, tracemalloc.get_traced_memory()[1]
