"""OpenAI's files: /v1/files."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from modelworks.api.finetuning_wire import file_object, page_of
from modelworks.app import openai_files
from modelworks.app.uploads import open_inbox
from modelworks.core.nouns import JsonObject
from modelworks.web.dependencies import App
from modelworks.web.receiving import receive_form

router = APIRouter(prefix="/v1/files", tags=["openai"])


@router.post("")
async def send_file(request: Request, app: App) -> JsonObject:
    """Keep a file of rows for fine-tuning: a form with `purpose` and `file`."""
    with open_inbox(app) as inbox:
        form = await receive_form(request, inbox)
        label = form.label or ""
        kept = await run_in_threadpool(openai_files.keep_file, app, inbox.place_for(label), label, form.fields)
    return file_object(kept)


@router.get("")
def list_files(
    app: App,
    purpose: str | None = None,
    after: Annotated[str | None, Query(description="id of the last file of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> JsonObject:
    """List files by the time they were sent."""
    found = openai_files.list_files(app, purpose)
    if order == "asc":
        found.reverse()
    if after is not None:
        last = openai_files.file_named(app, after, "after")
        found = [file for file in found if (file.id > last.id if order == "asc" else file.id < last.id)]
    return page_of(found, limit, file_object)


@router.get("/{file_id}")
def show_file(file_id: str, app: App) -> JsonObject:
    """Show a file."""
    return file_object(openai_files.file_named(app, file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
def file_content(file_id: str, app: App) -> FileResponse:
    """Return a file as it was sent."""
    file = openai_files.file_named(app, file_id)
    return FileResponse(file.place, media_type="application/octet-stream", filename=file.filename)


@router.delete("/{file_id}")
def delete_file(file_id: str, app: App) -> JsonObject:
    """Forget a file and the rows that were read from it, unless a job that has not ended learns from it."""
    openai_files.remove_file(app, file_id)
    return {"id": file_id, "object": "file", "deleted": True}
