from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.importer import import_file
from modelworks.data.preview import Bucket, Part, preview
from modelworks.data.record import Conversation, Message, Preference, to_line
from modelworks.data.spec import ImportSpec
from tiny import tiny_llama


def test_lengths_without_a_model_are_characters(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"text":"a"}\n{"text":"abcd"}\n{"text":"abcdefg"}\n')
    (tmp_path / "validation.jsonl").write_bytes(b"")

    seen = preview(tmp_path, None)

    # lengths 1, 4, 7: one below 2, none in 2-3, two in 4-7
    assert seen.buckets == (Bucket(1, 2, 1), Bucket(2, 4, 0), Bucket(4, 8, 2))
    assert (seen.unit, seen.rows_measured, seen.p50, seen.p95, seen.max) == ("characters", 3, 4, 7, 7)
    assert seen.sample == (Part("a", True),)


def test_the_sample_marks_the_answer(tmp_path: Path) -> None:
    record = Conversation((Message("user", "hi"), Message("assistant", "hello")))
    (tmp_path / "train.jsonl").write_bytes(to_line(record) + b"\n")
    (tmp_path / "validation.jsonl").write_bytes(b"")

    assert preview(tmp_path, None).sample == (
        Part("user: hi\nassistant: ", False),
        Part("hello", True),
        Part("\n", False),
    )


def test_a_preference_shows_both_answers_and_counts_the_longer_one(tmp_path: Path) -> None:
    record = Preference((Message("user", "hi"),), "hello", "go away")
    (tmp_path / "train.jsonl").write_bytes(to_line(record) + b"\n")
    (tmp_path / "validation.jsonl").write_bytes(b"")
    model = tiny_llama(tmp_path / "tiny")

    plain, read = preview(tmp_path, None), preview(tmp_path, model)

    assert [part.text for part in plain.sample] == ["user: hi\nassistant: ", "hello", "\nrejected: go away\n"]
    # A byte a token and one for each mark: start, "user\nhi", end, line end; start, "assistant\ngo away", end.
    assert read.max == 1 + 7 + 1 + 1 + 1 + 17 + 1
    assert [part.text for part in read.sample if part.learned] == ["hello<|im_end|>"]
    assert read.sample[-1].text.endswith("rejected: go away\n")


def test_an_empty_dataset_has_no_preview(tmp_path: Path) -> None:
    for side in ("train", "validation"):
        (tmp_path / f"{side}.jsonl").touch()

    with pytest.raises(Invalid, match="has no rows"):
        preview(tmp_path, None)


@pytest.mark.model
def test_the_real_model_sees_its_own_template(tmp_path: Path, smollm2: Path) -> None:
    source, folder = tmp_path / "rows.jsonl", tmp_path / "dataset"
    source.write_text("".join(f'{{"input": "number {i}", "output": "{i}"}}\n' for i in range(50)))
    folder.mkdir()
    import_file(source, folder, ImportSpec())

    seen = preview(folder, smollm2)

    assert (seen.unit, seen.rows_measured, sum(bucket.rows for bucket in seen.buckets)) == ("tokens", 50, 50)
    assert [part.text.endswith("<|im_end|>") for part in seen.sample if part.learned] == [True]
    assert seen.sample[0].text.endswith("<|im_start|>assistant\n")
