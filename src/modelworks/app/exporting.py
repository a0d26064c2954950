"""Models as one file for other programs: written here and now, and what jobs have written."""

from __future__ import annotations

import shutil
from pathlib import Path

from modelworks.app.kinds import kind_named
from modelworks.app.openai_files import file_named
from modelworks.app.services import Services
from modelworks.core.errors import Conflict, NotFound
from modelworks.core.nouns import File
from modelworks.core.spec import parse_spec
from modelworks.weights.export import PURPOSE, ExportSpec, Progress, base_of, check, whole_or_adapter, write_file


def export_file(
    services: Services, body: dict[str, object], place: Path, progress: Progress, *, overwrite: bool = False
) -> Path:
    """Write a model to `place`, or the file of that name that a job has written; return it.

    Raises:
        Unsupported: there is no such file of this model.
        Conflict: there is something at `place` already.
    """
    spec = parse_spec(ExportSpec, body, where="export")
    if place.exists() and not (overwrite and place.is_file()):
        raise Conflict(f"{place} exists already; choose another file" + ", or say --overwrite" * place.is_file())
    if not place.parent.is_dir():
        raise NotFound(f"there is no folder {place.parent} to write {place.name} to; make it first")
    try:
        made = exported(services, spec.model)
    except NotFound:
        inputs = services.inputs(kind_named("export"), spec)
        check(spec, inputs)
        found = whole_or_adapter(inputs[spec.model])
        write_file(found, base_of(found, inputs), place, spec.dtype, progress)
    else:
        if "dtype" in body and not made.filename.endswith(f"-{spec.dtype}.gguf"):
            source = made.parents[0].name if made.parents else "its model"
            raise Conflict(f"{spec.model} is there as {made.filename}; for {spec.dtype} export {source}")
        shutil.copyfile(made.place, place)
    return place


def exported(services: Services, name: str) -> File:
    """The file of a model that a job has written.

    Raises:
        NotFound: there is none of that name.
    """
    found = file_named(services, name)
    if found.purpose != PURPOSE:
        raise NotFound(f"{name} is no exported model; its purpose is {found.purpose}")
    return found
