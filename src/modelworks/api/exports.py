"""Exported models over HTTP: the files that jobs of kind export, and trainings, have written."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse

from modelworks.app.exporting import exported
from modelworks.core.nouns import AnyArtifact
from modelworks.web.dependencies import App

router = APIRouter(prefix="/modelworks/exports", tags=["artifacts"])
Name = Annotated[str, Path(description="NAME or ORG/NAME of the file, or its id")]


@router.get("/{name:path}", response_class=FileResponse)
def exported_file(name: Name, app: App) -> FileResponse:
    """Send the file of a model, e.g. NAME-gguf of a training with `export_gguf`."""
    found = exported(app, name)
    return FileResponse(found.place, media_type="application/octet-stream", filename=found.filename)


@router.delete("/{name:path}")
def remove_exported(name: Name, app: App) -> AnyArtifact:
    """Forget the file of a model and free its space; answers with what it was."""
    return app.remove("files", exported(app, name).name)
