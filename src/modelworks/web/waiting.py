"""Waiting for a job without a thread: a thread would hold up the end of the server."""

from __future__ import annotations

import asyncio
import time

from fastapi.concurrency import run_in_threadpool

from modelworks.app.services import CANCEL_WAIT_SECONDS, Services
from modelworks.core.nouns import Job

LOOK_SECONDS = 0.5


async def cancelled(app: Services, id_or_alias: str, stopping: asyncio.Event) -> Job:
    """Cancel a job and return it once its run is gone, with the state that won; sooner where the server stops."""
    job = await run_in_threadpool(app.cancel, id_or_alias, wait_seconds=0)
    deadline = time.monotonic() + CANCEL_WAIT_SECONDS
    while not job.state.is_final and not stopping.is_set() and time.monotonic() < deadline:
        await app.feed.wait(job.id, app.feed.seen(job.id), LOOK_SECONDS)
        job = await run_in_threadpool(app.job, job.id)
    return job
