"""The lines between gateway and engine process over one socket: an order each, or the reports of one step."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
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


def write_reports(reports: Sequence[tuple[str, Report]]) -> bytes:
    return orjson.dumps([(id_, type(report).__name__, _writable(report)) for id_, report in reports]) + b"\n"


def read_reports(line: bytes) -> list[tuple[str, Report]]:
    return [(id_, _report(kind, body)) for id_, kind, body in orjson.loads(line)]


class Lines:
    """The lines of a stream that comes in pieces."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def ended_by(self, piece: bytes) -> list[bytes]:
        """Add the next piece; return the lines that it ends.

        Raises:
            ValueError: a line has no end within `MAX_LINE_BYTES`.
        """
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0], self._begun = bytes(self._begun + lines[0]), bytearray()
        self._begun += rest
        if len(self._begun) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return lines


class Teller:
    """The engine's end of the socket, for any of its threads: what is told at once arrives at once.

    Args:
        channel: blocks when it is full.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._sending = channel, threading.Lock()

    def tell(self, reports: Sequence[tuple[str, Report]]) -> None:
        # A gateway that is gone is noticed where orders are read.
        with self._sending, suppress(OSError):
            self._channel.sendall(write_reports(reports))


def _report(kind: str, body: Any) -> Report:
    if kind == "Token" and not body["scored"]:  # nearly all: they need nothing made of their parts
        return Token(**body)
    report: Report = _REPORTS[kind].validate_python(body)
    return report


def _writable(report: Report) -> Report:
    """A lone surrogate cannot be written as UTF-8, and no tokenizer should give one; it must not end the engine."""
    if isinstance(report, Token) and not report.text.isascii():
        return dataclasses.replace(report, text=report.text.encode("utf-8", "replace").decode())
    return report
