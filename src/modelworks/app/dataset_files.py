"""A dataset by what its sender calls it: its name, its file's name, or the path of a file on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from modelworks.app.services import Services
from modelworks.core.errors import NotFound
from modelworks.core.hashing import hash_file
from modelworks.core.nouns import Dataset
from modelworks.data.spec import ImportSpec

_PATHS = ("/", "./", "../", "~")


def dataset_name(file_name: str) -> str:
    """A name in our grammar for the rows of a file, whatever its sender calls it."""
    stem = Path(file_name.replace("\\", "/")).name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:100] or "dataset"


def file_name(dataset: Dataset) -> str:
    """What the file that a dataset came from may have been called."""
    return dataset.name + "".join(Path(str(dataset.recipe.get("source", ""))).suffixes)


def dataset_called(services: Services, text: str) -> Dataset:
    """The dataset that `text` means. A file is imported the first time; equal content is the same dataset. Blocks.

    Raises:
        NotFound: there is no such dataset and no such file.
        Denied: it is a path outside the allowed folders.
        Invalid: the file cannot be read as rows.
    """
    catalog = services.catalog
    if not text.startswith(_PATHS):
        try:
            return catalog.dataset(text)
        except NotFound as error:
            label = dataset_name(text) + "".join(Path(text).suffixes)
            for found in uploaded(services):
                if label == file_name(found):
                    return found
            raise error from None
    path = catalog.allowed(Path(text))
    if not path.is_file():
        return catalog.dataset(text)
    return imported_once(services, path, path.name)[0]


def imported_once(services: Services, path: Path, label: str) -> tuple[Dataset, bool]:
    """The dataset of a file that its sender calls `label`, and whether it is new: equal content is imported once."""
    name = f"{dataset_name(label)}-{hash_file(path)[:12]}"
    try:
        return services.catalog.dataset(name), False
    except NotFound:
        return services.catalog.upload(path, ImportSpec(name=name))[0], True


def uploaded(services: Services) -> list[Dataset]:
    """Every dataset, oldest first; of those that bore one name one after the other, the newest."""
    named: dict[str, Dataset] = {}
    for found in services.catalog.datasets():
        named.setdefault(found.name, found)
    return list(named.values())[::-1]
