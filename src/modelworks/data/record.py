"""The canonical record, and how it lies on disk: one JSON object a line in `train.jsonl` and `validation.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import orjson

from modelworks.core.errors import Invalid, NotFound

Split: TypeAlias = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with the assistant's; every assistant turn is learned."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, learned whole."""

    text: str


Record: TypeAlias = Conversation | Text


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
    return orjson.dumps({"messages": [{"role": turn.role, "content": turn.content} for turn in record.messages]})


def parse_record(line: bytes) -> Record:
    body = orjson.loads(line)
    if "text" in body:
        return Text(body["text"])
    return Conversation(tuple(Message(turn["role"], turn["content"]) for turn in body["messages"]))
