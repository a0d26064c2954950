"""Datasets, models, adapters and exported files over HTTP. A name is NAME or ORG/NAME; an id does as well."""

from __future__ import annotations

import pathlib
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import Field

from modelworks.app.answers import Preview
from modelworks.app.archive import archive_of
from modelworks.app.catalog import LineageNode
from modelworks.app.exporting import exported
from modelworks.app.uploads import Imported, UploadSpec, import_upload, open_inbox
from modelworks.core.nouns import Adapter, AnyArtifact, Dataset, Model
from modelworks.core.spec import Spec, example
from modelworks.web.dependencies import App
from modelworks.web.receiving import FILE, FORM_SCHEMA, body_of, receive_file, receive_form
from modelworks.web.sending import attached

router = APIRouter(prefix="/modelworks", tags=["artifacts"])
Name = Annotated[str, Path(description="NAME or ORG/NAME, an alias, or an id")]
FileName = Annotated[str, Path(description="NAME or ORG/NAME of the file, or its id")]


FILENAME = {
    "type": "string",
    "description": "its ending tells the kind of file: .jsonl .json .csv .tsv .parquet .txt, also .gz",
}
# Both uploads are streamed to the disk, so FastAPI does not see their bodies and options.
OPTIONS = UploadSpec.model_json_schema()["properties"]
FORM = body_of(
    {
        "multipart/form-data": {
            "schema": FORM_SCHEMA | {"properties": {"file": FILE, **OPTIONS}},
            "example": {"file": "rows.jsonl", "name": "mine", "validation_share": 0.2},
        }
    }
)
PARAMETERS = [
    {"name": key, "in": "query", "required": False, "schema": schema, "description": schema["description"]}
    for key, schema in {"filename": FILENAME, **OPTIONS}.items()
    if key != "name"
]
ROWS = {"schema": FILE | {"description": "the rows"}, "example": '{"instruction": "Say hello", "output": "Hello!"}\n'}
WHOLE = {"parameters": PARAMETERS} | body_of({"application/octet-stream": ROWS})


class AddModel(Spec):
    """Copy a checkpoint or adapter folder of the server's machine into the workspace."""

    model_config = example(path="/data/my-checkpoint", name="me/base")

    path: str = Field(description="the folder; it must lie under an allowed path")
    name: str = Field(description="name to register it under")
    replace: bool = Field(False, description="move the name from an older model to this one")


class NewAlias(Spec):
    """A further name; one in use is moved."""

    model_config = example(alias="me/best")

    alias: str = Field(description="NAME or ORG/NAME")


@router.get("/datasets")
def list_datasets(app: App) -> list[Dataset]:
    """List datasets, newest first."""
    return app.catalog.datasets()


@router.post("/datasets", status_code=201, openapi_extra=FORM)
async def upload_form(request: Request, app: App) -> Imported:
    """Import a file of rows sent as a form: its field `file`, and the options of an import as further fields."""
    with open_inbox(app) as inbox:
        form = await receive_form(request, inbox)
        label = form.label or ""
        return await run_in_threadpool(import_upload, app, inbox.place_for(label), label, form.fields)


@router.put("/datasets/{name:path}", status_code=201, openapi_extra=WHOLE)
async def upload_body(name: Name, request: Request, app: App) -> Imported:
    """Import a file of rows sent as the whole body; `?filename=` tells its kind, the options are in the query too."""
    options = {key: value for key, value in request.query_params.items() if key != "filename"}
    label = request.query_params.get("filename", "")
    with open_inbox(app) as inbox:
        await receive_file(request, inbox, label)
        return await run_in_threadpool(import_upload, app, inbox.place_for(label), label, options | {"name": name})


# The longer address first: {name:path} takes slashes, so it would take these endings too.
@router.get("/datasets/{name:path}/preview")
def preview_dataset(
    name: Name,
    app: App,
    model: Annotated[str | None, Query(description="a model whose tokens and chat template to use")] = None,
    max_length: Annotated[int | None, Query(gt=1, description="tokens kept of a row")] = None,
) -> Preview:
    """Show token lengths, what a training would cut off, and some rows as `model` would see them."""
    return app.catalog.preview(name, model, max_length)


@router.get("/datasets/{name:path}")
def show_dataset(name: Name, app: App) -> Dataset:
    """Show a dataset."""
    return app.catalog.dataset(name)


@router.delete("/datasets/{name:path}")
def remove_dataset(name: Name, app: App) -> AnyArtifact:
    """Forget a dataset and free its space; answers with what it was."""
    return app.remove("datasets", name)


@router.get("/models")
def list_models(app: App) -> list[Model | Adapter]:
    """List models and adapters, newest first."""
    return app.servable()


@router.post("/models", status_code=201)
def add_model(body: AddModel, app: App) -> Model | Adapter:
    """Register a folder that lies on the server's machine."""
    return app.catalog.add_model(pathlib.Path(body.path), body.name, replace=body.replace)


@router.get(
    "/models/{name:path}/archive",
    response_class=Response,
    responses={200: {"description": "the folder", "content": {"application/x-tar": {}}}},
)
def model_archive(name: Name, app: App) -> Response:
    """Send a model's or an adapter's folder as an uncompressed tar."""
    return attached(archive_of(app.catalog.model(name)))


@router.get("/models/{name:path}/files/{file}", response_class=FileResponse)
def model_file(
    name: Name, file: Annotated[str, Path(description="e.g. README.md, merge_report.svg")], app: App
) -> FileResponse:
    """Return one file of a model's or an adapter's folder; pictures and text to look at, all else to keep."""
    place = app.catalog.model_file(name, file)
    shown = place.suffix in {".svg", ".json", ".md", ".txt"}
    # A picture could hold a script: it is never run.
    return FileResponse(
        place, filename=place.name, content_disposition_type="inline" if shown else "attachment",
        headers={"Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'"},
    )  # fmt: skip


@router.get("/models/{name:path}/lineage")
def lineage(name: Name, app: App) -> LineageNode:
    """Show what a model was made from, and how, back to what was pulled or uploaded."""
    return app.catalog.lineage(name)


@router.post("/models/{name:path}/alias")
def alias(name: Name, body: NewAlias, app: App) -> AnyArtifact:
    """Let a further name mean this model."""
    return app.catalog.alias(name, body.alias)


@router.get("/models/{name:path}")
def show_model(name: Name, app: App) -> Model | Adapter:
    """Show a model or adapter: its folder, files, parents and facts."""
    return app.catalog.model(name)


@router.delete("/models/{name:path}")
def remove_model(name: Name, app: App) -> AnyArtifact:
    """Forget a model or adapter and free its space; answers with what it was."""
    return app.remove("models", name)


@router.get("/exports/{name:path}", response_class=FileResponse)
def exported_file(name: FileName, app: App) -> FileResponse:
    """Send the file of a model, e.g. NAME-gguf of a training with `export_gguf`."""
    found = exported(app, name)
    return FileResponse(found.place, media_type="application/octet-stream", filename=found.filename)


@router.delete("/exports/{name:path}")
def remove_exported(name: FileName, app: App) -> AnyArtifact:
    """Forget the file of a model and free its space; answers with what it was."""
    return app.remove("files", exported(app, name).name)
