"""Files that come in from outside: received into the workspace, imported as a dataset, and gone again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from modelworks.app.services import Services
from modelworks.core.config import Settings
from modelworks.core.errors import Invalid, ModelworksError
from modelworks.core.nouns import Dataset
from modelworks.core.spec import parse_spec
from modelworks.data.importer import ImportReport
from modelworks.data.preview import Preview
from modelworks.data.spec import ImportSpec
from modelworks.store import files

# Only the endings of a sender's file name are used, never its path.
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")


class UploadSpec(ImportSpec):
    """Import a file of rows, and look at them as a model reads them."""

    model: str | None = Field(None, description="a model whose tokens and chat template the preview shows")
    max_length: int | None = Field(None, gt=1, description="tokens kept of a row.  By default as a training would")
    dry_run: bool = Field(False, description="only look: nothing is kept")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A new dataset (null after a dry run), what its import counted and found, and how its rows look."""

    dataset: Dataset | None
    report: ImportReport
    preview: Preview


@dataclass(frozen=True)
class Inbox:
    """A private folder of the workspace that one upload is written to."""

    settings: Settings
    folder: Path

    def place_for(self, label: str) -> Path:
        """Where to write a file that its sender calls `label`."""
        found = _SUFFIX.search(label)
        return self.folder / f"upload{found.group().lower() if found else ''}"

    def check_space(self, coming_bytes: int) -> None:
        """Raises OutOfSpace when so much more would not fit."""
        files.check_space(self.settings.home, coming_bytes)


@contextmanager
def open_inbox(services: Services) -> Iterator[Inbox]:
    """Have an inbox for as long as the block lasts."""
    with services.catalog.staging() as folder:
        yield Inbox(services.settings, folder)


def import_upload(services: Services, source: Path, label: str, options: Mapping[str, str]) -> Imported:
    """Import a received file; options are those of UploadSpec, `columns` as JSON. Blocks.

    Raises:
        Invalid: an option or too many rows cannot be read.
        Conflict: there is a dataset of that name.
    """
    read: dict[str, object] = {key: value for key, value in options.items() if value != ""}
    if "columns" in read:
        read["columns"] = _read_columns(options["columns"])
    read.setdefault("name", Path(label.replace("\\", "/")).name.split(".")[0])
    asked = parse_spec(UploadSpec, read, where="upload")
    spec = ImportSpec(**asked.model_dump(include=set(ImportSpec.model_fields)))
    if asked.model is not None:
        services.catalog.model(asked.model)  # before the import, which would be for nothing
    try:
        dataset, report, preview = services.catalog.upload_and_look(
            source, spec, asked.model, asked.max_length, keep=not asked.dry_run
        )
    except ModelworksError as error:
        # Its sender knows the file by another name.
        error.message = error.message.replace(str(source), label or "the file")
        raise
    return Imported(dataset=dataset, report=report, preview=preview)


def _read_columns(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise Invalid(f'columns: {text!r} is not JSON; write e.g. {{"instruction": "question"}}') from None
