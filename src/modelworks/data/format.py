"""What a format is, and the words formats share: a cell of text, a list of turns, a finished conversation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import orjson

from modelworks.core.errors import Invalid
from modelworks.core.registry import find_plugins
from modelworks.data.record import Conversation, Message, Record
from modelworks.data.tools import read_calls, read_tools

Row: TypeAlias = Mapping[str, object]

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip


class BadRow(Invalid):
    """One row cannot be read; `column` says where in it."""

    def __init__(self, column: str, what: str, remedy: str = "") -> None:
        super().__init__(f"column {column}: {what}")
        self.column, self.what, self.remedy = column, what, remedy


@dataclass(frozen=True, slots=True)
class Format:
    """How rows of one kind become records.

    A column in `needs` may have several names, e.g. "article|document". `convert` returns None for a row with nothing
    to learn and raises BadRow for one it cannot read. Of the formats that fit a file the one with the highest rank is
    taken; one below 0 only where it is asked for.
    """

    name: str
    needs: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row], Record | None]
    rank: int
    makes: type[Record] = Conversation

    def lacks(self, columns: Collection[str]) -> list[str]:
        return [need for need in self.needs if not set(need.split("|")) & set(columns)]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for column in (*self.needs, *self.optional) for name in column.split("|"))


def formats() -> Mapping[str, Format]:
    return find_plugins("modelworks.data.formats", Format)


def column_in(row: Row, column: str) -> str:
    """Which of the names of `column`, e.g. "article|document", this row fills; else one that it has."""
    return max(column.split("|"), key=lambda name: (name in row) + (row.get(name) is not None))


def text_of(row: Row, column: str) -> str:
    """The cell as text; blank for null."""
    column = column_in(row, column)
    if column not in row:
        raise BadRow(column, "is missing", f"give every row a {column!r}")
    value = row[column]
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise BadRow(column, f"is {kind_of(value)}, not text", "write it as a string")


def converse(system: str, turns: Sequence[Message], prompt: str, answer: str) -> Conversation | None:
    """Put a conversation together from a system prompt or "", earlier turns, a prompt and its answer; None if blank."""
    if not prompt.strip() or not answer.strip():
        return None
    first = (Message("system", system),) if system.strip() else ()
    return Conversation((*first, *turns, Message("user", prompt), Message("assistant", answer)))


def turns_of(row: Row, column: str, *, calls: bool = False) -> tuple[Message, ...]:
    """The turns of a list of `{role, content}` or `{from, value}` objects; a table's cell may hold the list as JSON.

    Turns that call tools are read only with `calls`.
    """
    if column not in row:
        raise BadRow(column, "is missing", f"give every row a {column!r}")
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise BadRow(column, f"is not JSON: {error}") from None
    if value is None or value == "":
        return ()
    if isinstance(value, dict):  # a single one
        value = [value]
    if not isinstance(value, list):
        raise BadRow(column, f"is {kind_of(value)}, not a list of messages")
    turns = tuple(_turn(turn, f"{column}[{index}]") for index, turn in enumerate(value))
    for index, turn in enumerate(turns):
        if turn.tool_calls and not calls:
            raise BadRow(f"{column}[{index}]", "calls tools, which cannot be learned in this format", "leave it out")
    return turns


def tools_of(row: Row) -> str:
    """What the row allows to call, in JSON."""
    column = column_in(row, "tools|functions")
    try:
        return read_tools(row.get(column))
    except (ValueError, TypeError) as error:  # TypeError: a number or a character that JSON cannot hold
        raise BadRow(column, f"is no list of functions: {error}") from None


def finish(turns: Sequence[Message], column: str, tools: str = "") -> Conversation | None:
    """Check the order of the turns; None if there is no answer to learn."""
    kept = [turn for turn in turns if turn.role != "system" or turn.content.strip()]
    if not any(_says(turn) for turn in kept if turn.role != "system"):
        return None
    if kept[-1].role != "assistant":
        raise BadRow(column, f"ends with a {kept[-1].role} message", "the last message must be the assistant's answer")
    if not _says(kept[-1]):
        return None
    for index, turn in enumerate(kept):
        if turn.role == "system" and index > 0:
            raise BadRow(column, f"message {index + 1} is a system message", "put the system message first")
        if not _says(turn):
            raise BadRow(column, f"message {index + 1} ({turn.role}) is empty", "remove it or fill it in")
    learned = any(turn.learned for turn in kept if turn.role == "assistant")
    return Conversation(tuple(kept), tools) if learned else None


def _says(turn: Message) -> bool:
    return bool(turn.tool_calls or turn.content.strip())


def kind_of(value: object) -> str:
    """What a JSON value is, with its article, for messages."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), (int | float, "a number"), (str, "a string"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _turn(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(where, f"is {kind_of(turn)}, not a message")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str):
        raise BadRow(where, "has no role", 'write {"role": "user", "content": "..."}')
    known = _ROLES.get(role.strip().lower())
    if known is None:
        raise BadRow(where, f"has the unknown role {role!r}", "use system, user, assistant or tool")
    parts = content if isinstance(content, list) else []
    calls = [part for part in parts if isinstance(part, dict) and part.get("type") == "tool_call"]
    content = [part for part in parts if part not in calls] if calls else content
    called = turn.get("tool_calls") or [call.get("value") for call in calls]
    if role.strip().lower() in {"function_call", "tool_call"}:
        called, content = content, None
    try:
        if isinstance(called, list) and calls:
            called = [orjson.loads(call) if isinstance(call, str) else call for call in called]
        tool_calls = read_calls(called)
    except (ValueError, TypeError) as error:
        raise BadRow(where, f"has a call that cannot be read: {error}") from None
    weight = turn.get("weight", turn.get("loss_weight"))
    if weight not in (None, 0, 1):
        raise BadRow(where, f"has the weight {weight!r}", "an answer is learned (1) or only read (0)")
    return Message(known, _content(content, where), known != "assistant" or weight != 0, tool_calls)


def _content(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # parts, as the OpenAI API writes them
        texts = [_part(part) for part in content if isinstance(part, dict)]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
        raise BadRow(where, "has parts that are not text", "only text can be learned")
    raise BadRow(where, f"has content that is {kind_of(content)}, not text", "write it as a string")


def _part(part: Row) -> object:
    text = part.get("text", part.get("value"))
    if part.get("type") in {"reasoning", "thinking"}:
        return f"<think>\n{part.get('thinking', text)}\n</think>\n\n"
    return text if part.get("type") == "text" else None
