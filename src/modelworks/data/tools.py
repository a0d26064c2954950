"""Functions that an answer may call: read from rows, and put into words for a template that has no place for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from modelworks.data.record import Conversation, Message

# The words of Hermes and Qwen.
_MAY_CALL = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def read_tools(value: object) -> str:
    """The functions of a row, a list or its JSON, as the OpenAI API writes them; "" for none.

    Raises:
        ValueError: they are something else.
    """
    tools = [_function(each) for each in _list(value)]
    return orjson.dumps(tools).decode() if tools else ""


def read_calls(value: object) -> str:
    """Calls of functions, their arguments as an object, or as JSON as the OpenAI API has them.

    Raises:
        ValueError: they are something else.
    """
    calls = []
    for each in _list(value):
        function = _function(each)["function"]
        arguments = function.get("arguments", function.get("parameters")) or {}
        arguments = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return orjson.dumps(calls).decode() if calls else ""


def in_words(conversation: Conversation) -> Conversation:
    """The same, with functions and calls in the text."""
    messages = [_with_calls(turn) for turn in conversation.messages]
    if conversation.tools:
        tools = "\n".join(orjson.dumps(tool).decode() for tool in orjson.loads(conversation.tools))
        told = _MAY_CALL.format(tools=tools)
        if messages[0].role == "system":
            told = f"{messages.pop(0).content}\n\n{told}"
        messages = [Message("system", told), *messages]
    return Conversation(tuple(messages))


def _with_calls(turn: Message) -> Message:
    if not turn.tool_calls:
        return turn
    calls = (orjson.dumps(call["function"]).decode() for call in orjson.loads(turn.tool_calls))
    said = [turn.content.rstrip()] if turn.content.strip() else []
    return replace(
        turn, content="\n".join([*said, *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]), tool_calls=""
    )


def _list(value: object) -> list[object]:
    if isinstance(value, str):
        value = orjson.loads(value) if value.strip() else None
    return value if isinstance(value, list) else [] if value is None else [value]


def _function(each: object) -> dict[str, Any]:
    function = each.get("function", each) if isinstance(each, Mapping) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("there is a function without a name")
    return {"type": "function", "function": function}
