"""An engine's answer for somebody who waits for it over HTTP, and may stop waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from modelworks.app.services import Services
from modelworks.core.generation import EngineFailed, Finished, GenerateRequest, Token

# How soon a client that went away is noticed, where the server does not tell by itself.
LOOK_SECONDS = 0.25
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    end: Finished


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, giving it up when the client goes away: web servers cancel streams only, not plain answers."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                raise EngineFailed("the client went away")
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def collect(app: Services, asked: GenerateRequest) -> Answer:
    """The whole answer to one request. What `Gateway.generate` raises is raised."""
    text = ""
    async with aclosing(app.gateway.generate(asked)) as events:
        async for event in events:
            if isinstance(event, Token):
                text += event.text
            elif isinstance(event, Finished):
                return Answer(text, event)
    raise EngineFailed("the engine's answer has no end")
