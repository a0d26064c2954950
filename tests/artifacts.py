"""Folders as the artifacts they would be once registered."""

from __future__ import annotations

from pathlib import Path

from modelworks.core.clock import now
from modelworks.core.hashing import digest_of, list_files
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, Model
from modelworks.weights.layout import inspect_adapter, inspect_model


def as_model(folder: Path, name: str) -> Model:
    files = list_files(folder)
    return Model(
        id=new_id(), name=name, digest=digest_of(files), path=folder, files=files,
        size_bytes=sum(file.size_bytes for file in files), created_at=now(), **inspect_model(folder),
    )  # fmt: skip


def as_adapter(folder: Path, name: str, base: Model) -> Adapter:
    files = list_files(folder)
    facts = inspect_adapter(folder) | {"base": base.id, "base_name": base.name, "base_digest": base.digest}
    return Adapter(
        id=new_id(), name=name, digest=digest_of(files), path=folder, files=files,
        size_bytes=sum(file.size_bytes for file in files), created_at=now(), **facts,
    )  # fmt: skip
