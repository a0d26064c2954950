"""Files as the OpenAI API keeps them: sent once, looked at, and learned from by their id."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from modelworks.app.services import Services
from modelworks.core import clock
from modelworks.core.errors import Conflict, Invalid, NotFound, Problem
from modelworks.core.ids import new_id
from modelworks.core.nouns import Dataset, File, Parent
from modelworks.core.spec import Spec, parse_spec
from modelworks.data.importer import import_file
from modelworks.data.record import split_path
from modelworks.data.spec import ImportSpec
from modelworks.store import catalog

TO_LEARN, RESULTS = "fine-tune", "fine-tune-results"
# Which rows are held out is said by naming a file for them.
ALL_ROWS = ImportSpec(validation_share=0)
# Rows for reinforcement: they end with a question, and hold what an answer is judged by.
PROMPTS = ImportSpec(validation_share=0, format="prompt")


class SendFile(Spec):
    """The fields of a form that sends a file."""

    purpose: Literal["fine-tune"]
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: int | None = Field(None, ge=3600, le=2_592_000, alias="expires_after[seconds]")


def keep_file(services: Services, source: Path, label: str, fields: Mapping[str, str]) -> File:
    """Keep what was sent as `source`; rows that cannot be learned make a file with a problem. Blocks.

    Raises:
        Invalid: a field is unknown or wrong.
    """
    asked = parse_spec(SendFile, fields, where="file")
    _forget_expired(services)
    filename = Path(label.replace("\\", "/")).name or "file"
    facts: dict[str, object] = {"filename": filename, "purpose": asked.purpose}
    if asked.seconds is not None:
        facts["expires_at"] = int(clock.now().timestamp()) + asked.seconds
    with services.catalog.staging() as folder:
        try:
            import_file(source, folder, ALL_ROWS)
        except (Invalid, NotFound) as error:
            try:
                import_file(source, folder, PROMPTS)
            except (Invalid, NotFound):
                facts["problem"] = error.message.replace(str(source), filename)
    return add_file(services, source, facts)


def add_file(services: Services, source: Path, facts: Mapping[str, object]) -> File:
    """Put a file that lies on the workspace's disk on the shelf; it is moved."""
    with services.catalog.staging() as folder:
        source.replace(folder / f"content{source.suffix}")
        return services.catalog.settle(folder, File, f"file-{new_id()}", facts, {})


def list_files(services: Services, purpose: str | None = None) -> list[File]:
    """Newest first."""
    _forget_expired(services)
    return [file for file in _files(services) if purpose in (None, file.purpose)]


def file_named(services: Services, file_id: str, param: str = "id") -> File:
    """Raises NotFound, blaming `param`."""
    found = catalog.find(services.database, services.settings.home, "files", file_id)
    if not isinstance(found, File) or _has_expired(found):
        what = f"no such file: {file_id!r}"
        raise NotFound(what, problems=(Problem(param, what),))
    return found


def remove_file(services: Services, file_id: str) -> None:
    """Forget a file and the rows that were read from it.

    Raises:
        Conflict: a job that has not ended learns from it.
    """
    _remove(services, file_named(services, file_id))


def dataset_of(services: Services, training: str, validation: str | None, read_as: ImportSpec = ALL_ROWS) -> Dataset:
    """The rows of one file, and those of another held out, as a dataset; made the first time it is asked for. Blocks.

    Raises:
        NotFound: there is no such file.
        Invalid: its rows cannot be learned.
    """
    sources = [_to_learn(services, training, "training_file")]
    if validation is not None:
        sources.append(_to_learn(services, validation, "validation_file"))
    name = ".".join([*(file.name for file in sources), *(["prompts"] if read_as is PROMPTS else [])])
    with suppress(NotFound):
        return services.catalog.dataset(name)
    with services.catalog.staging() as folder:
        report = import_file(sources[0].place, folder, read_as)
        facts: dict[str, object] = dict(report.facts())
        if validation is not None:
            with services.catalog.staging() as other:
                held_out = import_file(sources[1].place, other, read_as)
                split_path(other, "train").replace(split_path(folder, "validation"))
            facts["validation_rows"] = held_out.train_rows
        roles = zip(("source", "validation"), sources, strict=False)
        facts["parents"] = tuple(Parent.of(role, file) for role, file in roles)
        recipe = {"source": sources[0].filename} | read_as.model_dump(mode="json")
        with suppress(Conflict):  # another request was faster
            services.catalog.settle(folder, Dataset, name, facts, recipe)
    return services.catalog.dataset(name)


def _to_learn(services: Services, file_id: str, param: str) -> File:
    file = file_named(services, file_id, param)
    what = file.problem or (None if file.purpose == TO_LEARN else f"its purpose is {file.purpose}, not {TO_LEARN}")
    if what is not None:
        raise Invalid(f"{file_id} cannot be learned: {what}", problems=(Problem(param, what),))
    return file


def _remove(services: Services, file: File) -> None:
    for dataset in services.catalog.datasets():
        if any(parent.id == file.id for parent in dataset.parents):
            services.remove("datasets", dataset.name)
    services.remove("files", file.name)


def _forget_expired(services: Services) -> None:
    for file in _files(services):
        if _has_expired(file):
            with suppress(Conflict):  # a job still learns from it
                _remove(services, file)


def _has_expired(file: File) -> bool:
    return file.expires_at is not None and file.expires_at <= clock.now().timestamp()


def _files(services: Services) -> list[File]:
    return [found for found in services.catalog.on_shelf("files") if isinstance(found, File)]
