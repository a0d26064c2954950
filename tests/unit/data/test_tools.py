from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.importer import import_file
from modelworks.data.preview import preview
from modelworks.data.record import Conversation, Message, read_records
from modelworks.data.render import ChatTemplate, load_tokenizer, mark
from modelworks.data.spec import ImportSpec
from tiny import tiny_llama

CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
TOOL = {"name": "add", "description": "Add."}
STORED = '[{"type":"function","function":{"name":"add","arguments":{"a":1,"b":2}}}]'
ROW = Conversation(
    (Message("user", "1 + 2?"), Message("assistant", "", tool_calls=STORED), Message("tool", "3"),
     Message("assistant", "It is 3.")),
    '[{"type":"function","function":{"name":"add","description":"Add."}}]',
)  # fmt: skip
GLAIVE = {
    "conversations": [
        {"from": "human", "value": "1 + 2?"}, {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "3"}, {"from": "gpt", "value": "It is 3."},
    ],
    "tools": json.dumps([TOOL]),
}  # fmt: skip
OPENAI = {
    "messages": [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": json.dumps(CALL["arguments"])}}
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ],
    "tools": [{"type": "function", "function": TOOL}],
}  # fmt: skip
PARTS = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "value": "1 + 2?"}]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(CALL)}]},
        {"role": "tool", "content": [{"type": "text", "value": "3"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "It is 3."}]},
    ],
    "tools": json.dumps([TOOL]),
}
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for call in m.tool_calls or [] %}"
    "[{{ call.function.name }}({{ call.function.arguments.b }})]{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def bring(tmp_path: Path, row: object) -> Path:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    folder = tmp_path / "dataset"
    folder.mkdir()
    report = import_file(tmp_path / "rows.jsonl", folder, ImportSpec(validation_share=0))
    assert report.notes == ()
    return folder


@pytest.mark.parametrize("row", [GLAIVE, OPENAI, PARTS])
def test_calls_and_functions_are_kept_however_they_are_written(tmp_path: Path, row: object) -> None:
    assert list(read_records(bring(tmp_path, row), "train")) == [ROW]


def test_a_template_that_knows_tools_gets_them(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny")
    (model / "chat_template.jinja").write_text(WITH_TOOLS)

    marked = mark(load_tokenizer(model), ChatTemplate.load(model), ROW)

    assert marked.text.startswith('<|im_start|>system\n[{"type": "function", "function": {"name": "add"')
    assert [marked.text[start:end] for start, end in marked.learned] == ["[add(2)]<|im_end|>", "It is 3.<|im_end|>"]


def test_other_templates_are_told_in_words(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny")

    marked = mark(load_tokenizer(model), ChatTemplate.load(model), ROW)

    assert marked.text.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions")
    assert '<tools>\n{"type":"function","function":{"name":"add","description":"Add."}}\n</tools>' in marked.text
    called = '<tool_call>\n{"name":"add","arguments":{"a":1,"b":2}}\n</tool_call><|im_end|>'
    assert [marked.text[start:end] for start, end in marked.learned] == [called, "It is 3.<|im_end|>"]
    plain = preview(bring(tmp_path, OPENAI), None)
    assert next(part.text for part in plain.samples[0] if part.learned).startswith("<tool_call>")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**OPENAI, "tools": "no json"}, "column tools: is no list of functions"),
        ({**OPENAI, "tools": [{"type": "function"}]}, "there is a function without a name"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "no"}]}, "a call that"),
        ({"messages": OPENAI["messages"], "label": True}, "cannot be learned in this format"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, row: dict[str, object], what: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))

    with pytest.raises(Invalid, match=what):
        import_file(tmp_path / "rows.jsonl", tmp_path, ImportSpec(format="kto" if "label" in row else "auto"))
