"""OpenAI's fine-tuning: /v1/fine_tuning/jobs."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.concurrency import run_in_threadpool

from modelworks.api import finetuning_wire as wire
from modelworks.app import finetuning
from modelworks.app.services import Services
from modelworks.app.training import progress_of
from modelworks.core.errors import Unsupported
from modelworks.core.nouns import Job, JsonObject
from modelworks.core.states import JobState
from modelworks.web.dependencies import App
from modelworks.web.event_stream import Stopping
from modelworks.web.waiting import cancelled, paused

router = APIRouter(prefix="/v1/fine_tuning", tags=["openai"])
Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(description="id of the last one of the page before")]


@router.post("/jobs")
def create(body: Annotated[dict[str, Any], Body()], app: App) -> JsonObject:
    """Fine-tune a model on a file; beside OpenAI's fields it takes those of a training, such as `lora_r`."""
    return _shown(app, finetuning.create(app, body))


@router.get("/jobs")
def list_jobs(request: Request, app: App, after: After = None, limit: Limit = 20) -> JsonObject:
    """List jobs, newest first; `metadata[key]=value` filters them."""
    query = dict(request.query_params)
    found = finetuning.list_jobs(app, after, limit + 1, lambda job: wire.has_metadata(job, query))
    return wire.page_of(found, limit, lambda job: _shown(app, job))


@router.get("/jobs/{job_id}")
def show_job(job_id: str, app: App) -> JsonObject:
    """Show a job."""
    return _shown(app, finetuning.job_named(app, job_id))


@router.post("/jobs/{job_id}/cancel")
async def cancel(job_id: str, app: App, stopping: Stopping) -> JsonObject:
    """Cancel a job; answers, once its run is gone, with the state that won."""
    job = await run_in_threadpool(finetuning.job_named, app, job_id)
    job = await cancelled(app, job.id, stopping)
    return await run_in_threadpool(_shown, app, job)


@router.post("/jobs/{job_id}/pause")
async def pause(job_id: str, app: App, stopping: Stopping) -> JsonObject:
    """Pause a job, keeping its checkpoints; answers, once its run is gone, with the state that won."""
    job = await run_in_threadpool(finetuning.job_named, app, job_id)
    job = await paused(app, job.id, stopping)
    return await run_in_threadpool(_shown, app, job)


@router.post("/jobs/{job_id}/resume")
def resume(job_id: str, app: App) -> JsonObject:
    """Let a paused job go on from its newest checkpoint."""
    return _shown(app, app.resume(finetuning.job_named(app, job_id).id))


@router.get("/jobs/{job_id}/events")
def job_events(job_id: str, app: App, after: After = None, limit: Limit = 20) -> JsonObject:
    """List what a job told, newest first."""
    job = finetuning.job_named(app, job_id)
    return wire.page_of(finetuning.told(app, job, wire.seq_of(job, after), limit + 1), limit, wire.event_object)


@router.get("/jobs/{job_id}/checkpoints")
def job_checkpoints(job_id: str, app: App, after: After = None, limit: Limit = 10) -> JsonObject:
    """List the checkpoints that can be served: of a finished job, its model."""
    found = wire.checkpoint_objects(finetuning.job_named(app, job_id))
    # There is at most one, so nothing comes after it.
    return wire.page_of([] if after else found, limit, lambda checkpoint: checkpoint)


@router.api_route("/checkpoints/{rest:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
def permissions(rest: str) -> JsonObject:
    """Refused: a workspace has one owner."""
    raise Unsupported(f"{rest}: nothing is shared here; everybody who may use this server may use all its models")


def _shown(app: Services, job: Job) -> JsonObject:
    left = progress_of(app, job).eta_seconds if job.state is JobState.RUNNING else None
    finishes_at = None if left is None else int(time.time() + left)
    return wire.job_object(job, finetuning.resolved(job), finetuning.results_of(app, job), finishes_at)
