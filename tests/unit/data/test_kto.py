from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.importer import ImportReport, import_file
from modelworks.data.pairs import encode_ratings
from modelworks.data.preview import preview
from modelworks.data.record import Message, Rated, Record, read_records
from modelworks.data.render import load_tokenizer
from modelworks.data.spec import ImportSpec
from shelf import preferences
from tiny import tiny_llama

A, B = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
GOOD = Rated((Message("user", "a"), Message("assistant", "b")), desirable=True)


ALL_TRAIN = ImportSpec(validation_share=0)


def bring(tmp_path: Path, *rows: object, spec: ImportSpec = ALL_TRAIN) -> tuple[ImportReport, list[Record]]:
    source, folder = tmp_path / "rows.jsonl", tmp_path / "dataset"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir(exist_ok=True)
    return import_file(source, folder, spec), list(read_records(folder, "train"))


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True", "1"])
def test_a_label_may_be_written_in_any_way(tmp_path: Path, label: object) -> None:
    report, records = bring(tmp_path, {"prompt": "a", "completion": "b", "label": label})

    assert report.format == "kto"
    assert records == [GOOD]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [A], "completion": [B]},
        {"prompt": [A], "completion": "b"},
        {"messages": [A, B]},
    ],
)
def test_prompt_and_completion_may_be_messages(tmp_path: Path, row: dict[str, object]) -> None:
    _, records = bring(tmp_path, {**row, "label": True}, {**row, "label": "false"})

    assert records == [GOOD, Rated(GOOD.messages, desirable=False)]


def test_only_the_last_answer_is_rated(tmp_path: Path) -> None:
    _, (record,) = bring(tmp_path, {"messages": [A, B, A, B], "label": False})

    assert isinstance(record, Rated)
    assert [turn.learned for turn in record.messages if turn.role == "assistant"] == [False, True]


def test_a_label_that_is_no_rating_is_told(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": "sports"}

    with pytest.raises(Invalid, match="label: is 'sports', which does not tell good from bad"):
        bring(tmp_path, row, spec=ImportSpec(format="kto"))
    assert bring(tmp_path, row)[0].notes == ("not used: the columns label",)


def test_a_preview_shows_the_label(tmp_path: Path) -> None:
    bring(tmp_path, {"prompt": "a", "completion": "b", "label": 0})
    tiny = tiny_llama(tmp_path / "tiny")

    shown = [preview(tmp_path / "dataset", model).samples[0] for model in (None, tiny)]

    assert ["".join(part.text for part in parts).splitlines()[-1] for parts in shown] == ["label: bad"] * 2


def test_of_a_preference_one_answer_is_good_and_one_is_bad(tmp_path: Path) -> None:
    tiny = tiny_llama(tmp_path / "tiny")
    # With its marks the second prompt is longer than 40 tokens.
    rows = preferences(tmp_path / "pairs", [("hi", "yes", "no"), ("h" * 40, "yes", "no")])

    encoded = encode_ratings(tiny, rows.path, "train", 40)

    read = load_tokenizer(tiny).decode
    assert [(read(each.answer_ids, skip_special_tokens=False), each.desirable) for each in encoded.ratings] == [
        ("yes<|im_end|>", True),
        ("no<|im_end|>", False),
    ]
    assert (encoded.rows, encoded.truncated, encoded.masked) == (4, 0, 2)
