"""Server-sent events of an engine's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest
from starlette.requests import ClientDisconnect, Request

from modelworks.core.errors import ModelworksError, NotFound, Unavailable
from modelworks.core.nouns import JsonObject
from modelworks.web import streaming
from modelworks.web.streaming import data, stream

if TYPE_CHECKING:
    from starlette.types import Message


class Client:
    """Somebody who reads `pieces` pieces, then goes away."""

    def __init__(self, pieces: int = 1000) -> None:
        self.left, self.bodies, self.gone = pieces, [b""], asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.bodies.append(message.get("body", b""))
        self.left -= bool(self.bodies[-1])
        if self.left == 0:
            self.gone.set()

    async def read(self, source: AsyncGenerator[bytes, None]) -> str:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        answer = await stream(Request(scope, self.receive), source, told)
        await answer(scope, self.receive, self.send)
        return b"".join(self.bodies).decode()


def told(error: ModelworksError) -> JsonObject:
    return {"error": error.message}


async def failing(after: int, error: ModelworksError) -> AsyncGenerator[bytes, None]:
    for number in range(after):
        yield data({"number": number})
    raise error


def test_an_error_before_the_first_event_can_still_have_a_status() -> None:
    with pytest.raises(NotFound, match="no such model"):
        asyncio.run(Client().read(failing(0, NotFound("no such model"))))


def test_a_later_error_is_the_last_event() -> None:
    read = asyncio.run(Client().read(failing(1, Unavailable("the engine died"))))

    assert read == 'data: {"number":0}\n\ndata: {"error":"the engine died"}\n\n'


def test_a_comment_keeps_a_silent_stream_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.01)

    async def run() -> str:
        client = Client(pieces=4)

        async def slow() -> AsyncGenerator[bytes, None]:
            yield data({"number": 0})
            await client.gone.wait()

        return await client.read(slow())

    assert asyncio.run(run()).startswith('data: {"number":0}\n\n: waiting\n\n: waiting\n\n')


def test_the_source_is_closed_when_the_reader_leaves_in_the_middle() -> None:
    async def run() -> bool:
        closed = asyncio.Event()

        async def endless() -> AsyncGenerator[bytes, None]:
            try:
                yield data({"number": 0})
                await asyncio.Event().wait()
            finally:
                closed.set()

        await asyncio.wait_for(Client(pieces=1).read(endless()), 10)
        return closed.is_set()

    assert asyncio.run(run())


def test_a_client_that_takes_nothing_is_cut_off_and_its_answer_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STALLED_SECONDS", 0.01)
    ended = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield data({"more": True})
        finally:
            ended.append(True)

    class Stalled(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if len(self.bodies) > 3:
                await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        asyncio.run(Stalled().read(endless()))
    assert ended == [True]
