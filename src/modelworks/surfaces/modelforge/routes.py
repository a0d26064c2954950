"""The routes of the ModelForge REST API."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, WebSocket
from fastapi.concurrency import run_in_threadpool

from modelworks.app import task_training as training
from modelworks.app.dataset_files import dataset_name, uploaded
from modelworks.app.training import progress_of
from modelworks.app.uploads import import_upload, open_inbox
from modelworks.core.errors import Invalid
from modelworks.core.generation import ChatMessage, GenerateRequest
from modelworks.core.ids import new_id
from modelworks.surfaces.modelforge import translate, wire
from modelworks.web.answering import collect, while_there
from modelworks.web.dependencies import App
from modelworks.web.event_stream import Stopping
from modelworks.web.live import send_changes
from modelworks.web.receiving import FORM_SCHEMA, body_of, receive_form
from modelworks.web.waiting import cancelled

CODES = (400, 403, 404, 409, 413, 429, 501, 503, 507)
ERRORS: dict[int | str, dict[str, Any]] = {code: {"description": "`error` and `detail` say why"} for code in CODES}
router = APIRouter(tags=["ModelForge REST API"], responses=ERRORS)


@router.get("/api/info")
async def info() -> wire.InfoOut:
    """Say what can be trained, and how."""
    return wire.InfoOut()


@router.post("/api/start_training")
def start_training(asked: wire.StartIn, app: App) -> wire.StartOut:
    """Start a training, unless one waits or runs."""
    made = training.start_alone(app, translate.to_spec(asked), asked.task)
    elsewhere = f" on {made.provider}: {asked.provider} is not used, {made.missing}" if made.missing else ""
    return wire.StartOut(
        job_id=training.public_id(made.job), message=f"Training started successfully{elsewhere}",
        provider_used=made.provider, warnings=[*translate.warnings_of(asked), *made.notes],
    )  # fmt: skip


@router.get("/api/training_status")
def training_status(app: App) -> wire.StatusOut:
    """Say how far the training is, or how the last one ended."""
    job = training.latest_training(app)
    return translate.to_status(job, progress_of(app, job)) if job else wire.StatusOut()


@router.post("/api/stop_training")
async def stop_training(app: App, stopping: Stopping) -> wire.DoneOut:
    """Stop the training; answers once it is gone."""
    job = await run_in_threadpool(training.latest_training, app)
    if job is None or translate.STATUS[job.state] != "training":
        raise Invalid("no training is running, so there is nothing to stop")
    status = translate.STATUS[(await cancelled(app, job.id, stopping)).state]
    return wire.DoneOut(status=status, message=f"Training {status}{' successfully' if status == 'stopped' else ''}")


@router.get("/api/models")
@router.get("/api/models/", include_in_schema=False)
def list_models(app: App) -> dict[str, list[wire.ModelOut]]:
    """List what was trained here, oldest first."""
    found = training.trained_models(app)
    return {"models": [translate.to_model(each, training.labels_of(app, each)) for each in found]}


@router.get("/api/models/{model_id:path}")
def show_model(model_id: str, app: App) -> wire.ModelDetailOut:
    """Show a trained model, by number or name."""
    found = training.trained_model(app, model_id)
    return translate.to_model(found, training.labels_of(app, found))


@router.delete("/api/models/{model_id:path}")
async def delete_model(model_id: str, app: App) -> wire.DoneOut:
    """Forget a trained model and free its space."""
    await training.forget_trained(app, await run_in_threadpool(training.trained_model, app, model_id))
    return wire.DoneOut(status="deleted", message="Model deleted successfully")


@router.post("/api/upload_dataset", openapi_extra=body_of({"multipart/form-data": {"schema": FORM_SCHEMA}}))
async def upload_dataset(request: Request, app: App) -> wire.UploadedOut:
    """Take a file of rows; it replaces an older one of its name."""
    with open_inbox(app) as inbox:
        label = (await receive_form(request, inbox)).label or ""
        options = {"name": dataset_name(label), "on_bad_rows": "skip", "replace": "true"}
        made = await run_in_threadpool(import_upload, app, inbox.place_for(label), label, options)
    validation = {"valid": not made.report.bad_rows, "errors": [str(problem) for problem in made.report.problems]}
    return wire.UploadedOut(filename=label, num_examples=made.report.rows, validation=validation)


@router.get("/api/datasets")
def list_datasets(app: App) -> dict[str, list[wire.DatasetOut]]:
    """List datasets, oldest first."""
    return {"datasets": [translate.to_dataset(found) for found in uploaded(app)]}


@router.post("/api/playground/generate")
async def generate(asked: wire.GenerateIn, request: Request, app: App) -> wire.GenerateOut:
    """Ask a trained model."""
    began = time.monotonic()
    found = await run_in_threadpool(training.trained_model, app, str(asked.model_id))
    wanted = GenerateRequest(
        id=new_id(), model=found.id, messages=(ChatMessage("user", asked.prompt),), max_tokens=asked.max_new_tokens,
        temperature=asked.temperature, top_p=asked.top_p,
    )  # fmt: skip
    answer = await while_there(request, collect(app, wanted))
    spent, tokens = round((time.monotonic() - began) * 1000), answer.end.completion_tokens
    return wire.GenerateOut(generated_text=answer.text, tokens_generated=tokens, generation_time_ms=spent)


@router.websocket("/ws/training")
async def follow_training(socket: WebSocket, app: App, stopping: Stopping) -> None:
    """Send the status at once and whenever it changes, as JSON."""
    await send_changes(socket, lambda: training_status(app).model_dump_json(), stopping)
