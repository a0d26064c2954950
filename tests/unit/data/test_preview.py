from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.importer import import_file
from modelworks.data.preview import Bucket, Part, preview
from modelworks.data.record import Conversation, Message, Preference, Prompted, Rated, Record, to_line
from modelworks.data.spec import ImportSpec
from tiny import tiny_llama


def test_lengths_without_a_model_are_characters(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"text":"a"}\n{"text":"abcd"}\n{"text":"abcdefg"}\n')
    (tmp_path / "validation.jsonl").write_bytes(b"")

    seen = preview(tmp_path, None)

    # lengths 1, 4, 7: one below 2, none in 2-3, two in 4-7
    assert seen.buckets == (Bucket(1, 2, 1), Bucket(2, 4, 0), Bucket(4, 8, 2))
    assert (seen.unit, seen.rows_measured, seen.p50, seen.p95, seen.p99, seen.max) == ("characters", 3, 4, 7, 7, 7)
    # the first, the middle one, the longest
    assert seen.samples == ((Part("a", True),), (Part("abcd", True),), (Part("abcdefg", True),))


def test_the_sample_marks_the_answer(tmp_path: Path) -> None:
    record = Conversation((Message("user", "hi"), Message("assistant", "hello")))
    (tmp_path / "train.jsonl").write_bytes(to_line(record) + b"\n")
    (tmp_path / "validation.jsonl").write_bytes(b"")

    assert preview(tmp_path, None).samples == (
        (Part("user: hi\nassistant: ", False), Part("hello", True), Part("\n", False)),
    )


def test_a_preference_shows_both_answers_and_counts_the_longer_one(tmp_path: Path) -> None:
    record = Preference((Message("user", "hi"),), "hello", "go away")
    (tmp_path / "train.jsonl").write_bytes(to_line(record) + b"\n")
    (tmp_path / "validation.jsonl").write_bytes(b"")
    model = tiny_llama(tmp_path / "tiny")

    plain, read = preview(tmp_path, None), preview(tmp_path, model)

    assert [part.text for part in plain.samples[0]] == ["user: hi\nassistant: ", "hello", "\n", "rejected: go away\n"]
    # A byte a token and one for each mark: start, "user\nhi", end, line end; start, "assistant\ngo away", end.
    assert read.max == 1 + 7 + 1 + 1 + 1 + 17 + 1
    assert [part.text for part in read.samples[0] if part.learned] == ["hello<|im_end|>"]
    assert read.samples[0][-1].text.endswith("rejected: go away\n")


def test_rows_that_are_cut_and_rows_left_with_nothing_to_learn_are_counted(tmp_path: Path) -> None:
    records = [Conversation((Message("user", "q" * n), Message("assistant", "a" * 5))) for n in (1, 4, 20)]
    (tmp_path / "train.jsonl").write_bytes(b"".join(to_line(record) + b"\n" for record in records))
    (tmp_path / "validation.jsonl").write_bytes(b"")
    model = tiny_llama(tmp_path / "tiny")

    # A byte a token and one for each mark: start, "user\nq", end, line end, start, "assistant\naaaaa", end
    assert preview(tmp_path, model).max == 1 + 25 + 1 + 1 + 1 + 15 + 1
    # the first row is 26 long, the second, of 29, keeps three a and the third, whose answer begins at 39, nothing
    seen = preview(tmp_path, model, 26)

    assert (seen.max_length, seen.truncated_rows, seen.masked_rows) == (26, 2, 1)
    assert [part.text for part in seen.samples[1]] == [
        "<|im_start|>user\nqqqq<|im_end|>\n<|im_start|>assistant\n", "aaa", "aa<|im_end|>", "\n",
    ]  # fmt: skip
    assert [(part.learned, part.cut) for part in seen.samples[1]] == [
        (False, False), (True, False), (True, True), (False, True),
    ]  # fmt: skip


def test_prompts_and_ratings_are_measured(tmp_path: Path) -> None:
    user = (Message("user", "hi"),)
    records: list[Record] = [Prompted(user, {"n": 1}), Rated.of((*user, Message("assistant", "no")), desirable=False)]
    (tmp_path / "train.jsonl").write_bytes(b"".join(to_line(record) + b"\n" for record in records))
    (tmp_path / "validation.jsonl").write_bytes(b"")

    seen = preview(tmp_path, tiny_llama(tmp_path / "tiny"), 16)

    # prompt: 1 + 7 + 1 + 1 + 1 + 10; too long is left out. Its answer: + 2 + 1; behind 16 tokens.
    assert (seen.p50, seen.max, seen.truncated_rows, seen.masked_rows) == (24, 24, 2, 2)
    assert [[part.text for part in sample if part.learned] for sample in seen.samples] == [[], ["no<|im_end|>"]]


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
    assert [part.text.endswith("<|im_end|>") for part in seen.samples[0] if part.learned] == [True]
    assert seen.samples[0][0].text.endswith("<|im_start|>assistant\n")
