"""The lines between gateway and engine process: one JSON object each, over one socket for all requests."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias, get_args

import orjson
from pydantic import TypeAdapter

from modelworks.core.generation import EngineEvent, GenerateRequest, Token
from modelworks.core.nouns import JsonObject
from modelworks.serve.engine import EngineStats

# A prompt may be long; a line is one message whole.
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Generate:
    request: GenerateRequest
    adapter: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    id: str


@dataclasses.dataclass(frozen=True, slots=True)
class AddAdapter:
    id: str
    name: str
    folder: str


@dataclasses.dataclass(frozen=True, slots=True)
class RemoveAdapter:
    id: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class AskStats:
    id: str


@dataclasses.dataclass(frozen=True, slots=True)
class SetThreads:
    """Compute with so many threads from the next step on. It is not answered."""

    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Remake:
    """Make the weights anew from a recipe, once the answers going on have ended; those asked for after it wait."""

    id: str
    recipe: JsonObject


Order: TypeAlias = Generate | Cancel | AddAdapter | RemoveAdapter | AskStats | SetThreads | Remake


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """An order about adapters was carried out."""


@dataclasses.dataclass(frozen=True, slots=True)
class Remade:
    """The weights are new; `told` is what making them found."""

    told: JsonObject


# Every report but Ready and a failed load belongs to the id of an order.
Report: TypeAlias = Ready | Done | Remade | EngineStats | EngineEvent

_ORDERS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Order)}
_REPORTS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Report)}


def write_order(order: Order) -> bytes:
    return orjson.dumps({"type": type(order).__name__, "body": order}) + b"\n"


def read_order(line: bytes) -> Order:
    message = orjson.loads(line)
    order: Order = _ORDERS[message["type"]].validate_python(message["body"])
    return order


def write_report(id_: str, report: Report) -> bytes:
    # A lone surrogate cannot be written as UTF-8, and no tokenizer should give one; it must not end the engine.
    if isinstance(report, Token):
        report = dataclasses.replace(report, text=report.text.encode("utf-8", "replace").decode())
    return orjson.dumps({"id": id_, "type": type(report).__name__, "body": report}) + b"\n"


def read_report(line: bytes) -> tuple[str, Report]:
    message = orjson.loads(line)
    report: Report = _REPORTS[message["type"]].validate_python(message["body"])
    return message["id"], report
