"""A value that changes, over a WebSocket: at once, and again whenever it is another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import WebSocket, WebSocketDisconnect
from fastapi.concurrency import run_in_threadpool

PERIOD_SECONDS = 0.5
# Who does not read for so long is left: nothing piles up, since each value is looked at when it can be sent.
SEND_SECONDS = 20.0
GOING_AWAY = 1001


async def send_changes(socket: WebSocket, look: Callable[[], str], stopping: asyncio.Event) -> None:
    """Send what `look` says, at most every half second, until the client goes or the server stops. `look` may block."""
    await socket.accept()
    gone = asyncio.create_task(_until_gone(socket))
    stopped = asyncio.create_task(stopping.wait())
    told = None
    try:
        while not gone.done() and not stopped.done():
            value = await run_in_threadpool(look)
            if value != told:
                await asyncio.wait_for(socket.send_text(value), SEND_SECONDS)
                told = value
            await asyncio.wait({gone, stopped}, timeout=PERIOD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            await socket.close(GOING_AWAY, "the server is stopping")
    except (TimeoutError, WebSocketDisconnect):
        return
    finally:
        for task in (gone, stopped):
            task.cancel()


async def _until_gone(socket: WebSocket) -> None:
    """Read what the client says, which is not listened to, until it goes away."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
