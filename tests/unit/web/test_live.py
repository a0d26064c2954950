"""A value over a WebSocket, with a reader that stops reading."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.websockets import WebSocket

from modelworks.web import live


class Reader:
    """The other end of a connection: takes frames only while it is let."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.closed: int | None = None
        self.met = False
        self.reads, self.left = asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.taken = asyncio.Condition()

    def socket(self) -> WebSocket:
        return WebSocket({"type": "websocket", "path": "/", "headers": []}, self.receive, self.send)

    async def receive(self) -> Any:
        if not self.met:
            self.met = True
            return {"type": "websocket.connect"}
        await self.left.wait()
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            await self.reads.wait()
            async with self.taken:
                self.heard.append(message["text"])
                self.taken.notify_all()
        elif message["type"] == "websocket.close":
            self.closed = message["code"]

    async def has_heard(self, text: str) -> None:
        async with self.taken:
            await asyncio.wait_for(self.taken.wait_for(lambda: text in self.heard), 30)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PERIOD_SECONDS", 0.01)


def test_a_slow_reader_hears_the_newest_value_and_none_of_those_it_missed() -> None:
    async def main() -> None:
        reader, stopping, value = Reader(), asyncio.Event(), ["1"]
        following = asyncio.create_task(live.send_changes(reader.socket(), lambda: value[0], stopping))
        await reader.has_heard("1")
        reader.reads.clear()
        for number in range(2, 50):
            value[0] = str(number)
            await asyncio.sleep(0)
        reader.reads.set()
        await reader.has_heard("49")
        stopping.set()
        await following

        # The first, one that was on its way, and the newest.
        assert len(reader.heard) <= 3
        assert reader.closed == live.GOING_AWAY

    asyncio.run(main())


def test_a_value_that_stays_is_told_once_and_a_client_that_goes_is_left() -> None:
    async def main() -> None:
        reader, looks = Reader(), asyncio.Semaphore(0)

        def look() -> str:
            loop.call_soon_threadsafe(looks.release)
            return "same"

        loop = asyncio.get_running_loop()
        following = asyncio.create_task(live.send_changes(reader.socket(), look, asyncio.Event()))
        for _ in range(5):
            await looks.acquire()
        reader.left.set()
        await following

        assert (reader.heard, reader.closed) == (["same"], None)

    asyncio.run(main())


def test_who_does_not_read_at_all_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        reader = Reader()
        reader.reads.clear()
        await asyncio.wait_for(live.send_changes(reader.socket(), lambda: "1", asyncio.Event()), 30)

        assert reader.heard == []

    monkeypatch.setattr(live, "SEND_SECONDS", 0.05)
    asyncio.run(main())
