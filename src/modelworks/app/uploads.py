"""Files that come in from outside: received into the workspace, imported as a dataset, and gone again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelworks.app.services import Services
from modelworks.core.config import Settings
from modelworks.core.errors import Invalid, ModelworksError
from modelworks.core.ids import new_id
from modelworks.core.nouns import Dataset
from modelworks.core.spec import parse_spec
from modelworks.data.importer import ImportReport
from modelworks.data.spec import ImportSpec
from modelworks.store import files

# Only the endings of a sender's file name are used, never its path.
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}$")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A new dataset, and what its import counted and found."""

    dataset: Dataset
    report: ImportReport


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
def open_inbox(settings: Settings) -> Iterator[Inbox]:
    """Have an inbox for as long as the block lasts."""
    folder = settings.home / "staging" / new_id()
    folder.mkdir(parents=True)
    try:
        with files.told_when_full(settings.home):
            yield Inbox(settings, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def import_upload(services: Services, source: Path, label: str, options: Mapping[str, str]) -> Imported:
    """Import a received file; options are those of ImportSpec, `columns` as JSON. Blocks.

    Raises:
        Invalid: an option or too many rows cannot be read.
        Conflict: there is a dataset of that name.
    """
    read: dict[str, object] = {key: value for key, value in options.items() if value != ""}
    if "columns" in read:
        read["columns"] = _read_columns(options["columns"])
    read.setdefault("name", Path(label.replace("\\", "/")).name.split(".")[0])
    spec = parse_spec(ImportSpec, read, where="upload")
    try:
        dataset, report = services.catalog.upload(source, spec)
    except ModelworksError as error:
        # Its sender knows the file by another name.
        error.message = error.message.replace(str(source), label or "the file")
        raise
    return Imported(dataset=dataset, report=report)


def _read_columns(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise Invalid(f'columns: {text!r} is not JSON; write e.g. {{"instruction": "question"}}') from None
