"""A job's events as server-sent events: what there was, then what there is, without gap or repeat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.requests import HTTPConnection
from pydantic import TypeAdapter

from modelworks.app.services import Services
from modelworks.core.nouns import Event, EventType, Job
from modelworks.core.states import JobState

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
# Without an id, so that a client's Last-Event-ID stays that of the last real event.
GOODBYE = b'event: stopping\ndata: {"message": "the server is stopping; connect again with Last-Event-ID"}\n\n'
# How soon a stream sees that the server stops, and how often it looks for events of another process's worker.
STOP_LOOK_SECONDS = 0.5
WAITS_PER_READ = 4

_EVENT = TypeAdapter(Event)


async def stop_sign(connection: HTTPConnection) -> asyncio.Event:
    """What is set when the server is about to end."""
    found: asyncio.Event = connection.app.state.stopping
    return found


Stopping = Annotated[asyncio.Event, Depends(stop_sign)]


async def follow(app: Services, job_id: str, after: int, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield every event numbered above `after` until the job has ended or the server stops."""
    told_at = time.monotonic()
    while True:
        seen = app.feed.seen(job_id)
        job, page = await run_in_threadpool(_look, app, job_id, after)
        if page:
            after, told_at = page[-1].seq, time.monotonic()
            yield b"".join(encode(event) for event in page)
        if _has_ended(job, page):
            return
        if stopping.is_set():
            yield GOODBYE
            return
        if time.monotonic() - told_at >= KEEP_ALIVE_SECONDS:
            told_at = time.monotonic()
            yield KEEP_ALIVE
        if not page:
            await _news(app, job_id, seen, stopping)


def encode(event: Event) -> bytes:
    # JSON of pydantic holds no line break, so the event is one data line.
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), _EVENT.dump_json(event))


def _look(app: Services, job_id: str, after: int) -> tuple[Job, list[Event]]:
    # The state first: if the job has ended by then, the events read afterwards are all there will be.
    return app.job(job_id), app.events(job_id, after)


def _has_ended(job: Job, page: list[Event]) -> bool:
    if page:
        last = page[-1]
        return last.type is EventType.STATE and JobState(str(last.body["state"])).is_final
    return job.state.is_final


async def _news(app: Services, job_id: str, seen: int, stopping: asyncio.Event) -> None:
    for _ in range(WAITS_PER_READ):
        await app.feed.wait(job_id, seen, STOP_LOOK_SECONDS)
        if app.feed.seen(job_id) != seen or stopping.is_set():
            return
