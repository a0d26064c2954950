"""The routes of the Model Finetuning API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from modelworks.app.file_training import Queued, queue_training, queue_training_on
from modelworks.app.services import Services
from modelworks.app.training import progress_of
from modelworks.app.training_log import end_of_log, log_of
from modelworks.app.uploads import open_inbox
from modelworks.core.errors import Invalid, NotFound
from modelworks.core.states import JobState
from modelworks.surfaces.finetuning_api import translate, wire
from modelworks.web.dependencies import App
from modelworks.web.event_stream import Stopping
from modelworks.web.persona import dashboard_url
from modelworks.web.receiving import body_of, receive_form
from modelworks.web.waiting import cancelled

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": wire.ErrorOut} for code in (400, 403, 404, 409, 413, 501, 503, 507)
}
SCHEMA = wire.FinetuneIn.model_json_schema()
DATA_FILE = {"type": "string", "format": "binary", "description": "rows: .csv, .json or .jsonl"}
FORM = SCHEMA | {"required": ["data_file"], "properties": {**SCHEMA["properties"], "data_file": DATA_FILE}}
AS_JSON = {"application/json": {"schema": SCHEMA}}
JSON_BODY, EITHER_BODY = body_of(AS_JSON), body_of(AS_JSON | {"multipart/form-data": {"schema": FORM}})
ENDED_FIRST = {JobState.SUCCEEDED, JobState.FAILED}
QUEUED = "Finetuning job has been queued and will start shortly"

router = APIRouter(tags=["Model Finetuning API"], responses=ERRORS)


@router.post("/finetune", response_model_exclude_none=True, openapi_extra=EITHER_BODY)
async def finetune(request: Request, app: App) -> wire.FinetuneOut:
    """Queue a fine-tuning on a dataset that is here or, sent as a form, on the file in it."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return await finetune_legacy(request, app)
    with open_inbox(app) as inbox:
        form = await receive_form(request, inbox)
        label = form.label or ""
        asked = translate.read_form(form.fields, label)
        queued = await run_in_threadpool(_train, app, asked, inbox.place_for(label), label)
    rows, kind = (queued.facts.total_rows, queued.facts.file_type) if queued.facts else (0, "")
    message = f"Finetuning job queued with {rows} training samples from {kind} file"
    config = translate.to_config(queued.job)
    return _answer(request, queued, asked, message).model_copy(update={"dataset_info": queued.facts, "config": config})


@router.post("/finetune-legacy", response_model_exclude_none=True, openapi_extra=JSON_BODY)
async def finetune_legacy(request: Request, app: App) -> wire.FinetuneOut:
    """Queue a fine-tuning on a dataset that is here."""
    asked = translate.read_json(await request.body())
    return _answer(request, await run_in_threadpool(_train, app, asked), asked)


@router.post("/finetune-simple", response_model_exclude_none=True)
def finetune_simple(request: Request, app: App) -> wire.FinetuneOut:
    """Queue a fine-tuning of the default model on the dataset alpaca."""
    asked = wire.FinetuneIn(dataset_name="alpaca")
    return _answer(request, _train(app, asked), asked, "Simple finetuning job started with default parameters")


@router.get("/jobs", response_model_exclude_unset=True)
def list_jobs(app: App) -> wire.JobsOut:
    """List trainings, newest first."""
    found = [translate.to_entry(job, end_of_log(app, job)) for job in app.jobs(kind="train", limit=1000)]
    return wire.JobsOut(jobs=found, total=len(found))


@router.get("/jobs/{job_id}")
def show_job(job_id: str, app: App) -> wire.JobOut:
    """Show how far a training is, with the end of its log."""
    job = app.job_of("train", job_id)
    return wire.JobOut(
        job_id=job.id,
        status=translate.STATUS[job.state],
        progress=translate.to_progress(job, progress_of(app, job)),
        logs=end_of_log(app, job),
        error=job.error.message if job.error else None,
    )


@router.get("/logs/{job_id}")
def show_logs(job_id: str, app: App) -> wire.LogsOut:
    """Show the whole log of a training."""
    job = app.job_of("train", job_id)
    return wire.LogsOut(job_id=job.id, logs=log_of(app, job))


@router.delete("/jobs/{job_id}")
async def cancel_job(job_id: str, app: App, stopping: Stopping) -> wire.CancelOut:
    """Cancel a training; answers once its process is gone."""
    job = await run_in_threadpool(app.job_of, "train", job_id)
    if job.state.is_final or (job := await cancelled(app, job.id, stopping)).state in ENDED_FIRST:
        raise Invalid("Cannot cancel completed or failed job")
    message = "Job has been cancelled" if job.state.is_final else "Job is being cancelled"
    return wire.CancelOut(job_id=job.id, status=translate.STATUS[job.state], message=message)


@router.get("/dashboard")
def dashboard(request: Request) -> wire.DashboardOut:
    """Say where the live dashboard is."""
    return wire.DashboardOut(dashboard_url=dashboard_url(request))


def _train(app: Services, asked: wire.FinetuneIn, file: Path | None = None, label: str = "") -> Queued:
    spec = translate.to_spec(asked)
    try:
        return queue_training(app, spec) if file is None else queue_training_on(app, file, label, spec)
    except NotFound as error:
        raise NotFound(f"{error.message}; name others with model_name and dataset_name") from None


def _answer(request: Request, queued: Queued, asked: wire.FinetuneIn, message: str = QUEUED) -> wire.FinetuneOut:
    notes = [*queued.notes, *(f"{name}: not known, ignored" for name in asked.model_extra or {})]
    url = dashboard_url(request)
    return wire.FinetuneOut(job_id=queued.job.id, status="queued", message=message, dashboard_url=url, notes=notes)
