"""An engine's answer as server-sent events: kept open while nothing comes, its source closed however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from modelworks.core.errors import ModelworksError
from modelworks.core.nouns import JsonObject
from modelworks.web.answering import while_there

# A silent stream is cut by proxies; a comment line keeps it open while a request waits for its turn.
HEARTBEAT_SECONDS = 15.0
HEARTBEAT = b": waiting\n\n"
# A client that takes nothing for so long is cut off: its answer would keep its place for ever.
STALLED_SECONDS = 60.0


async def stream(
    request: Request, source: AsyncGenerator[bytes, None], told: Callable[[ModelworksError], JsonObject]
) -> StreamingResponse:
    """Answer with what `source` yields.

    An error before its first event is raised: it can have a status still. A later one is `told` as the last event.
    """
    try:
        first = await while_there(request, anext(source))
    except BaseException:
        await source.aclose()
        raise
    return _EventStream(first, source, told)


def data(body: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


class _EventStream(StreamingResponse):
    """Sends each event in the task that it comes to: what a token passes through is work that the engine waits for.

    Another task looks now and then how long that one has waited already, and for whom.
    """

    def __init__(
        self, first: bytes, source: AsyncGenerator[bytes, None], told: Callable[[ModelworksError], JsonObject]
    ) -> None:
        self._first, self._source, self._told = first, source, told
        self._is_sending, self._since = True, 0.0
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(source, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(None) as patience:
                watching = asyncio.create_task(self._watch(send, patience))
                try:
                    await self._send_all(send)
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
        except TimeoutError:
            raise ClientDisconnect from None

    async def _send_all(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        event: bytes | None = self._first
        while event is not None:
            self._is_sending, self._since = True, now()
            await send(_part(event))
            self._is_sending, self._since = False, now()
            event = await self._next()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> bytes | None:
        try:
            return await anext(self._source, None)
        except ModelworksError as error:  # after which the source has no more
            return data(self._told(error))

    async def _watch(self, send: Send, patience: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        while True:
            left = self._since + (STALLED_SECONDS if self._is_sending else HEARTBEAT_SECONDS) - now()
            if left > 0:
                await asyncio.sleep(min(left, HEARTBEAT_SECONDS))
                continue
            if not self._is_sending:
                self._since = now()
                with suppress(TimeoutError):
                    await asyncio.wait_for(send(_part(HEARTBEAT)), STALLED_SECONDS)
                    continue
            patience.reschedule(now())
            return


def _part(event: bytes) -> Message:
    return {"type": "http.response.body", "body": event, "more_body": True}
