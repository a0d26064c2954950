"""Waiting for a job's run to be gone, without a thread: a thread would hold up the end of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastapi.concurrency import run_in_threadpool

from modelworks.app.services import CANCEL_WAIT_SECONDS, PAUSE_WAIT_SECONDS, Services
from modelworks.core.nouns import Job
from modelworks.core.states import JobState

LOOK_SECONDS = 0.5


async def cancelled(app: Services, id_or_alias: str, stopping: asyncio.Event) -> Job:
    """Cancel a job and return it once its run is gone, with the state that won; sooner where the server stops."""
    job = await run_in_threadpool(app.cancel, id_or_alias, wait_seconds=0)
    return await _until(app, job, lambda job: job.state.is_final, CANCEL_WAIT_SECONDS, stopping)


async def paused(app: Services, id_or_alias: str, stopping: asyncio.Event) -> Job:
    """Pause a job, keeping its checkpoints, and return it as `cancelled` does."""
    job = await run_in_threadpool(app.pause, id_or_alias, wait_seconds=0)
    return await _until(app, job, lambda job: job.state is not JobState.RUNNING, PAUSE_WAIT_SECONDS, stopping)


async def _until(
    app: Services, job: Job, is_there: Callable[[Job], bool], seconds: float, stopping: asyncio.Event
) -> Job:
    deadline = time.monotonic() + seconds
    while not is_there(job) and not stopping.is_set() and time.monotonic() < deadline:
        await app.feed.wait(job.id, app.feed.seen(job.id), LOOK_SECONDS)
        job = await run_in_threadpool(app.job, job.id)
    return job
