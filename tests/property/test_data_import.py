from __future__ import annotations

import contextlib
import json
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.core.errors import ModelworksError
from modelworks.core.hashing import digest_of, list_files
from modelworks.data.importer import ImportReport, import_file
from modelworks.data.spec import ImportSpec

SIDES = ("train", "validation")
KEYS = st.sampled_from(["role", "content", "tool_calls", "function", "name", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6, alphabet=st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.sampled_from(
    [
        "instruction",
        "output",
        "input",
        "history",
        "messages",
        "tools",
        "conversations",
        "text",
        "split",
        "n",
        "prompt",
        "chosen",
        "rejected",
        "question",
        "answers",
        "context",
        "summary",
    ]
)
ROWS = st.lists(VALUES | st.dictionaries(COLUMNS, VALUES, max_size=4), max_size=12)
PLAIN_ROWS = st.lists(st.fixed_dictionaries({"input": st.sampled_from("abcd "), "output": st.sampled_from("xyz ")}))


def bring(source: Path, spec: ImportSpec) -> tuple[ImportReport, list[bytes], list[bytes]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = import_file(source, folder, spec)
        train, validation = ((folder / f"{side}.jsonl").read_bytes().split(b"\n")[:-1] for side in SIDES)
    return report, train, validation


def written(folder: str, rows: list[object], kind: str) -> Path:
    source = Path(folder) / f"rows.{kind}"
    text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    source.write_text(text)
    return source


@settings(deadline=None)
@given(
    ROWS,
    st.sampled_from(["json", "jsonl"]),
    st.sampled_from(["auto", "alpaca", "messages", "text", "preference", "question_answering"]),
    st.booleans(),
)
def test_no_row_is_lost_or_doubled_whatever_the_values(rows: list[object], kind: str, form: str, drop: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            report, train, validation = bring(
                written(folder, rows, kind),
                ImportSpec(format=form, on_bad_rows="skip", validation_share=0.5, drop_duplicates=drop),
            )
        except ModelworksError:
            return

    assert report.rows_read == len(rows)
    dropped = report.duplicate_rows if drop else 0
    assert len(train) + len(validation) + dropped + report.empty_rows + report.bad_rows == len(rows)
    assert (len(train), len(validation)) == (report.train_rows, report.validation_rows)
    assert len({*train, *validation}) == len(train) + len(validation) + dropped - report.duplicate_rows


@settings(deadline=None)
@given(PLAIN_ROWS, st.randoms(use_true_random=False), st.integers(0, 5), st.sampled_from([0, 0.1, 0.5]))
def test_the_split_does_not_depend_on_the_order(
    rows: list[dict[str, str]], dice: random.Random, seed: int, share: float
) -> None:
    shuffled = dice.sample(rows, len(rows))
    spec = ImportSpec(seed=seed, validation_share=share)
    results: list[tuple[set[bytes], set[bytes]] | None] = []
    for order in (rows, shuffled):
        with tempfile.TemporaryDirectory() as folder:
            try:
                _, train, validation = bring(written(folder, [*order], "jsonl"), spec)
            except ModelworksError:
                results.append(None)
            else:
                results.append((set(train), set(validation)))
                assert validation or share == 0 or len({*train}) < 2

    assert results[0] == results[1]


@settings(deadline=None)
@given(
    st.sampled_from(
        [b"", b"\x1f\x8b\x08\x00", b"PAR1", b"\xff\xfe", b'{"data":[{"', b'[{"', b'{"paragraphs":[{"qas":']
    ),
    st.binary(max_size=200) | st.text(max_size=60).map(str.encode),
    st.sampled_from(["json", "jsonl", "csv", "tsv", "parquet", "arrow", "txt", "json.gz", "csv.gz"]),
)
def test_any_bytes_are_read_or_refused_in_our_words(start: bytes, content: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"rows.{kind}"
        source.write_bytes(start + content)
        with contextlib.suppress(ModelworksError):
            bring(source, ImportSpec(on_bad_rows="skip"))


@settings(deadline=None)
@given(ROWS, st.sampled_from(["json", "jsonl"]))
def test_the_same_file_gives_the_same_dataset(rows: list[object], kind: str) -> None:
    digests = []
    with tempfile.TemporaryDirectory() as folder:
        source = written(folder, rows, kind)
        for name in "ab":
            place = Path(folder) / name
            place.mkdir()
            try:
                import_file(source, place, ImportSpec(on_bad_rows="skip"))
            except ModelworksError as error:
                digests.append(str(error))
            else:
                digests.append(digest_of(list_files(place)))

    assert digests[0] == digests[1]
