from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelworks.cli.answers import Answer
from modelworks.cli.generating import Asking, answer_line, open_out
from modelworks.cli.main import run_command
from modelworks.core.errors import Conflict, Invalid

ASKING = Asking("some", {"max_tokens": 5}, None, False)
USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("row", "asking", "body"),
    [
        ("hi", ASKING, {"messages": USER, "model": "some", "max_tokens": 5}),
        ({"prompt": "hi", "id": 1}, ASKING, {"messages": USER, "model": "some", "max_tokens": 5}),
        (
            {"messages": USER},
            Asking("some", {}, "be brief", False),
            {"messages": [{"role": "system", "content": "be brief"}, *USER], "model": "some"},
        ),
        ({"prompt": "hi"}, Asking("some", {}, None, True), {"prompt": "hi", "model": "some"}),
        (
            {"custom_id": "x", "body": {"model": "mine", "messages": USER, "max_tokens": 3, "stream": True}},
            Asking(None, {"max_tokens": 5}, None, False),
            {"messages": USER, "model": "mine", "max_tokens": 3},
        ),
    ],
)
def test_a_row_makes_a_request(row: object, asking: Asking, body: dict[str, Any]) -> None:
    assert asking.body(0, json.dumps(row).encode()) == body


@pytest.mark.parametrize(
    ("line", "asking"),
    [
        ("not json", ASKING), ("[1]", ASKING), ('{"text": "b"}', ASKING), ('{"prompt": 1}', ASKING),
        ('{"body": {"input": "x"}}', ASKING), ('{"messages": []}', Asking("some", {}, None, True)),
        ('"hi"', Asking(None, {}, None, False)),
    ],
)  # fmt: skip
def test_a_line_that_is_no_question_names_its_row(line: str, asking: Asking) -> None:
    wrong = asking.body(7, line.encode())

    assert isinstance(wrong, Invalid)
    assert wrong.message.startswith("row 7 ")


def test_a_line_keeps_the_keys_of_its_row() -> None:
    answer = Answer(text="ja", finish_reason="stop", prompt_tokens=2, completion_tokens=3)

    line = json.loads(answer_line(4, b'{"prompt": "hi", "answer": "yes", "id": 9}', "some", answer))

    assert line == {
        "index": 4, "prompt": "hi", "input_answer": "yes", "id": 9, "model": "some", "answer": "ja",
        "finish_reason": "stop", "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }  # fmt: skip


def test_a_row_of_a_batch_keeps_its_custom_id_and_an_error_its_code() -> None:
    line = json.loads(answer_line(0, b'{"custom_id": "a", "body": {"model": "m"}}', None, Invalid("no")))

    assert line == {"index": 0, "custom_id": "a", "model": "m", "error": {"code": "invalid", "message": "no"}}


def test_a_file_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    out, lines = str(tmp_path / "out.jsonl"), [b'"a"', b'"b"']
    with open_out(out, ASKING, lines) as answers:
        answers.write(b'{"error": 1}\n')
        answers.write(b'{"half')

    with open_out(out, ASKING, lines) as answers:
        assert (answers.count, answers.failed) == (1, 1)
        with pytest.raises(Conflict, match="another run"), open_out(out, ASKING, lines):
            pass
        answers.write(b"{}\n")
    with pytest.raises(Conflict, match="does not hold"), open_out(out, ASKING, [b'"c"']):
        pass

    assert Path(out).read_bytes() == b'{"error": 1}\n{}\n'


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")

    with pytest.raises(Conflict), open_out(str(out), ASKING, [b'"a"']):
        pass

    assert out.read_text() == "mine"


@pytest.mark.parametrize(("arguments", "code"), [(("--prompts", "nowhere"), 4), (("--prompt", "a", "--file", "b"), 2)])
def test_what_cannot_be_asked_is_said_before_anything_is_loaded(arguments: tuple[str, ...], code: int) -> None:
    assert run_command(["generate", "some", *arguments]) == code
