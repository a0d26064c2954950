"""Calls of functions found in an answer as it comes, in the forms that models write."""

from __future__ import annotations

import pytest

from modelworks.core.generation import ToolCall
from modelworks.serve.native.calls import HERMES, LLAMA, MISTRAL, CallReader, Form, form_of

CALL = '{"name": "f", "arguments": {"x": 1}}'
OTHER = '{"name": "g", "arguments": {}}'


def read(form: Form, text: str, size: int = 1) -> list[str | tuple[str, str]]:
    """What is read, when the text comes in pieces; texts that follow each other are joined."""
    reader = CallReader(form)
    said: list[str | tuple[str, str]] = []
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    for number, piece in enumerate(pieces, 1):
        for each in reader.read(piece, last=number == len(pieces)):
            if isinstance(each, ToolCall):
                said.append((each.name, each.arguments))
            elif said and isinstance(said[-1], str):
                said[-1] += each
            else:
                said.append(each)
    return said


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", [("f", '{"x": 1}')]),
        (HERMES, f"Well. <tool_call>{CALL}</tool_call>\n<tool_call>{OTHER}</tool_call>",
         ["Well. ", ("f", '{"x": 1}'), ("g", "{}")]),
        (HERMES, "Only <b>words</b>, <tool", ["Only <b>words</b>, <tool"]),
        (HERMES, "<tool_call>nonsense</tool_call>", ["<tool_call>nonsense</tool_call>"]),
        (HERMES, f"<tool_call>{CALL}", [("f", '{"x": 1}')]),
        (MISTRAL, f"[TOOL_CALLS][{CALL}, {OTHER}]", [("f", '{"x": 1}'), ("g", "{}")]),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"x": 1}', [("f", '{"x": 1}')]),
        (LLAMA, '{"name": "f", "parameters": {"x": 1}}', [("f", '{"x": 1}')]),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [("f", '{"x": 1}')]),
        (LLAMA, '{"not": "a call"}', ['{"not": "a call"}']),
        (LLAMA, "Words {braces}", ["Words {braces}"]),
    ],
)  # fmt: skip
def test_calls_are_read_whatever_the_pieces(form: Form, text: str, expected: list[object], size: int) -> None:
    assert read(form, text, size) == expected


def test_the_form_is_the_one_that_the_template_teaches() -> None:
    assert form_of("... <tool_call> ...") is HERMES
    assert form_of("... [TOOL_CALLS] ...") is MISTRAL
    assert form_of("""{{ '{"name": "' + name + '", "parameters": ' }}""") is LLAMA
    assert form_of("no word of it") is HERMES


def test_ids_of_calls_differ_and_have_the_nine_letters_that_mistral_wants() -> None:
    first, second = CallReader(MISTRAL).read(f"[TOOL_CALLS][{CALL}, {CALL}]", last=True)

    assert isinstance(first, ToolCall)
    assert isinstance(second, ToolCall)
    assert first.id != second.id
    assert len(first.id) == 9
    assert first.id.isalnum()
