"""The canonical record, and how it lies on disk: one JSON object a line in `train.jsonl` and `validation.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from modelworks.core.errors import Invalid, NotFound
from modelworks.core.nouns import JsonObject

Split: TypeAlias = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `role` is system, user, assistant or tool. An assistant's that is not `learned` is only read."""

    role: str
    content: str
    learned: bool = True
    # What an assistant's turn calls, as the OpenAI API writes it, in JSON.
    tool_calls: str = ""
    # Which call a tool's turn answers.
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with the assistant's; those of the assistant are learned. `tools`: what it may call, in JSON."""

    messages: tuple[Message, ...]
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, learned whole."""

    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which `chosen` is the better one."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def answered(self, answer: str) -> Conversation:
        """The prompt with one of the answers, which alone is learned."""
        prompt = (replace(message, learned=False) for message in self.prompt)
        return Conversation((*prompt, Message("assistant", answer)))


@dataclass(frozen=True, slots=True)
class Rated:
    """A conversation whose last answer, the only one that is learned from, is a good one or a bad one."""

    messages: tuple[Message, ...]
    desirable: bool

    @classmethod
    def of(cls, messages: Sequence[Message], desirable: bool) -> Rated:
        prompt = (replace(turn, learned=turn.role != "assistant") for turn in messages[:-1])
        return cls((*prompt, replace(messages[-1], learned=True)), desirable)


@dataclass(frozen=True, slots=True)
class Prompted:
    """Turns that wait for an answer; `item` is what else the row holds, to judge the answer by."""

    messages: tuple[Message, ...]
    item: JsonObject


Record: TypeAlias = Conversation | Text | Preference | Rated | Prompted


def split_path(dataset_folder: Path, split: Split) -> Path:
    return dataset_folder / f"{split}.jsonl"


def read_records(dataset_folder: Path, split: Split) -> Iterator[Record]:
    """Yield the records of one side, in order, one line in memory at a time.

    Raises:
        NotFound: the folder has no such side.
        Invalid: a line is not a canonical record.
    """
    path = split_path(dataset_folder, split)
    if not path.is_file():
        raise NotFound(f"{path} is missing; import the dataset again")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield parse_record(line)
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise Invalid(f"{path}, line {number}: not a record ({error}); import the dataset again") from None


def count(dataset_folder: Path, split: Split) -> int:
    """Count the records of one side without parsing them."""
    path = split_path(dataset_folder, split)
    if not path.is_file():
        raise NotFound(f"{path} is missing; import the dataset again")
    with path.open("rb") as file:
        return sum(1 for _ in file)


def to_line(record: Record) -> bytes:
    """The record as JSON without its line end. Equal records give equal bytes."""
    if isinstance(record, Text):
        return orjson.dumps({"text": record.text})
    if isinstance(record, Preference):
        body = {"prompt": _turns(record.prompt), "chosen": record.chosen, "rejected": record.rejected}
        return orjson.dumps(body)
    if isinstance(record, Rated):
        return orjson.dumps({"messages": _turns(record.messages), "desirable": record.desirable})
    if isinstance(record, Prompted):
        return orjson.dumps({"messages": _turns(record.messages), "item": record.item})
    tools = {"tools": orjson.Fragment(record.tools)} if record.tools else {}
    return orjson.dumps({"messages": _turns(record.messages), **tools})


def parse_record(line: bytes) -> Record:
    body = orjson.loads(line)
    if "text" in body:
        return Text(body["text"])
    if "chosen" in body:
        return Preference(_parse_turns(body["prompt"]), body["chosen"], body["rejected"])
    if "desirable" in body:
        return Rated(_parse_turns(body["messages"]), body["desirable"])
    if "item" in body:
        return Prompted(_parse_turns(body["messages"]), body["item"])
    return Conversation(_parse_turns(body["messages"]), _as_json(body.get("tools")))


def _turns(messages: Sequence[Message]) -> list[dict[str, object]]:
    # weight: as the OpenAI API says which answers are not learned
    return [
        {"role": turn.role, "content": turn.content}
        | ({} if turn.learned else {"weight": 0})
        | ({"tool_calls": orjson.Fragment(turn.tool_calls)} if turn.tool_calls else {})
        for turn in messages
    ]


def _parse_turns(turns: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(turn["role"], turn["content"], turn.get("weight", 1) == 1, _as_json(turn.get("tool_calls")))
        for turn in turns
    )


def _as_json(value: object) -> str:
    return orjson.dumps(value).decode() if value else ""
