"""An engine's answer as server-sent events: kept open while nothing comes, its source closed however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

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
    return _EventStream(source, _kept_open(first, source, told))


def data(body: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


class _EventStream(StreamingResponse):
    def __init__(self, source: AsyncGenerator[bytes, None], kept_open: AsyncGenerator[bytes, None]) -> None:
        self._source, self._kept_open = source, kept_open
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(kept_open, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        try:
            await super().__call__(scope, receive, send_soon)
        finally:
            # The reader first: a source that somebody still waits for cannot be closed.
            await self._kept_open.aclose()
            await self._source.aclose()


async def _kept_open(
    first: bytes, source: AsyncGenerator[bytes, None], told: Callable[[ModelworksError], JsonObject]
) -> AsyncGenerator[bytes, None]:
    yield first
    while True:
        following = asyncio.ensure_future(anext(source))
        try:
            while not (await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS))[0]:
                yield HEARTBEAT
            event = following.result()
        except StopAsyncIteration:
            return
        except ModelworksError as error:
            yield data(told(error))
            return
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        yield event
