"""The routes of the Model Merging API; its health is `collisions.py`'s."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from modelworks.app import merging
from modelworks.app.archive import archive_of
from modelworks.app.plugins import list_plugins
from modelworks.core.nouns import JsonObject
from modelworks.surfaces.merging_api import translate, wire
from modelworks.web.dependencies import App
from modelworks.web.receiving import body_of
from modelworks.web.sending import attached

CODES = (400, 403, 404, 409, 413, 501, 503, 507)
ERRORS: dict[int | str, dict[str, Any]] = {code: {"description": "`error` says why"} for code in CODES}
BODY = body_of({"application/json": {"schema": wire.MergeIn.model_json_schema()}})
router = APIRouter(prefix="/api", tags=["Model Merging API"], responses=ERRORS)


@router.get("/methods")
def list_methods() -> wire.MethodsOut:
    """List the ways to merge, with their parameters."""
    return wire.MethodsOut(methods=translate.to_methods(list_plugins()["methods"]))


@router.get("/example")
async def example() -> JsonObject:
    """Return a request to start from."""
    return dict(wire.EXAMPLE)


@router.post("/merge", status_code=202, openapi_extra=BODY)
async def merge(request: Request, app: App) -> wire.QueuedOut:
    """Queue a merge."""
    asked = translate.read(await request.body())
    spec, notes = translate.to_spec(asked, list_plugins()["methods"])
    job = await run_in_threadpool(merging.queue_merge, app, spec, translate.to_params(asked), notes)
    warnings = translate.to_job(job, 0.0).warnings
    return wire.QueuedOut(job_id=job.id, check_status=f"/api/jobs/{job.id}", warnings=warnings)


@router.get("/jobs")
def list_jobs(app: App) -> wire.JobsOut:
    """List merges, newest first."""
    found = app.jobs(kind="merge", limit=1000)
    return wire.JobsOut(jobs=[translate.to_job(job, merging.percent_done(app, job)) for job in found])


@router.get("/jobs/{job_id}")
def show_job(job_id: str, app: App) -> wire.JobOut:
    """Show how far a merge is."""
    job = app.job_of("merge", job_id)
    return translate.to_job(job, merging.percent_done(app, job))


@router.get(
    "/download/{job_id}",
    response_model=wire.DownloadOut,
    responses={200: {"description": "where the model is, or its folder", "content": {"application/x-tar": {}}}},
)
def download(
    job_id: str, app: App, archive: Annotated[bool, Query(description="send the model's folder as a tar")] = False
) -> wire.DownloadOut | Response:
    """Say where a merged model is or, with `archive`, send it."""
    job = app.job_of("merge", job_id)
    made = archive_of(merging.merged_by(app, job))
    return attached(made) if archive else translate.to_download(job, made)
