"""Folders of weights as the artifacts they would be, told by their headers alone; nothing is written down."""

from __future__ import annotations

import atexit
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from modelworks.core.clock import now
from modelworks.core.config import Settings
from modelworks.core.errors import Invalid, NotFound, Problem, Unsupported
from modelworks.core.nouns import Adapter, AnyArtifact, Model
from modelworks.merge.fit import weight_files
from modelworks.weights.gguf_checkpoint import as_checkpoint, is_quantised
from modelworks.weights.reader import MAX_HEADER_BYTES
from modelworks.weights.safety import read_object

# Blocks of a weight file that tell it from others of the same shapes.
SAMPLES = 64
LookUp = Callable[[str], AnyArtifact | None]
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def find_inputs(
    names: Iterable[str], laid_on: dict[str, str], look_up: LookUp
) -> tuple[dict[str, AnyArtifact], tuple[str, ...]]:
    """What each name means: a folder, what `look_up` finds, or a snapshot in the hub's cache; and what is doubtful.

    Args:
        laid_on: for an adapter's name, the name of the model that it is laid upon.

    Raises:
        NotFound: with a Problem for each name that means nothing.
    """
    found: dict[str, AnyArtifact] = {}
    problems: list[Problem] = []
    notes: list[str] = []
    for name in names:
        try:
            folder = _folder(name) or _gguf(name, notes)
            artifact = look_up(name) if folder is None else None
            if folder is None and artifact is None:
                folder = _snapshot(name)
            found[name] = artifact or _described(name, folder)
        except (Invalid, NotFound, Unsupported) as error:
            problems.append(Problem(name, error.message))
    if problems:
        raise NotFound("; ".join(str(problem) for problem in problems), problems=tuple(problems))
    for name, artifact in found.items():
        base = found.get(laid_on.get(name, ""))
        if isinstance(artifact, Adapter) and isinstance(base, Model) and artifact.id == str(artifact.path):
            if not _may_be(artifact.base_name, base):
                notes.append(f"{name} was trained on {artifact.base_name}, and is laid upon {base.name}")
            # Folders are not hashed, so an adapter's word for its base is all there is.
            found[name] = replace(artifact, base=base.id, base_name=base.name, base_digest=base.digest)
    return found, tuple(notes)


def _folder(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _gguf(name: str, notes: list[str]) -> Path | None:
    """A folder for a GGUF file, which its weights are read through."""
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf" or not path.is_file():
        return None
    if is_quantised(path):
        notes.append(f"{name} is quantised: it is dequantised as it is read, and what quantising lost stays lost")
    return as_checkpoint(path, _scratch())


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="modelworks-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _snapshot(name: str) -> Path | None:
    """The folder of ORG/NAME[@REVISION] in the hub's cache, if it is there; nothing is fetched."""
    repository, _, revision = name.partition("@")
    if not _ON_HUB.fullmatch(repository):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    branch = folder / "refs" / (revision or "main")
    commit = branch.read_text().strip() if branch.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _described(name: str, folder: Path | None) -> AnyArtifact:
    if folder is None:
        raise NotFound("there is no such folder, and no model of that name here or in the hub's cache; look for a typo")
    folder = folder.resolve()
    weights = weight_files(folder)
    facts: dict[str, Any] = {
        "id": str(folder), "name": name, "digest": _digest(folder, weights), "path": folder, "files": (),
        "size_bytes": sum(file.stat().st_size for file in weights), "created_at": now(),
    }  # fmt: skip
    # What merging looks at, it reads itself: a damaged folder is then one problem among all.
    if not (folder / "adapter_config.json").is_file():
        return Model(**facts, architecture="", dtype="", parameters=0, vocab_size=0, context_length=0)
    told = str(read_object(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    return Adapter(
        **facts, base="", base_name=told, base_digest="", rank=0, alpha=0.0, target_modules=(), parameters=0
    )  # fmt: skip


def _digest(folder: Path, weights: Iterable[Path]) -> str:
    """Of the config, the weights' headers and a sample of them: hashing all would take longer than merging."""
    said = hashlib.sha256()
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            said.update((folder / name).read_bytes())
    for file in weights:
        size = file.stat().st_size
        said.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            said.update(stream.read(min(length, MAX_HEADER_BYTES)))
            for place in range(0, size, max(size // SAMPLES, 1)):
                stream.seek(place)
                said.update(stream.read(4096))
    return f"sample:{said.hexdigest()}"


def _may_be(told: str, base: Model) -> bool:
    """Whether what an adapter calls its base can be this one: by the last part of its name, or nothing is told."""
    config = read_object(base.path / "config.json")
    names = {base.name, str(base.path), str(config.get("_name_or_path") or base.name)}
    return not told or Path(told).name.lower() in {Path(name).name.lower() for name in names}


def workspace(settings: Settings) -> LookUp:
    """Look names up in the workspace, if there is one; it is not made."""

    def look_up(name: str) -> AnyArtifact | None:
        if settings.database_url is None and not (settings.home / "modelworks.db").is_file():
            return None
        from modelworks.store import catalog
        from modelworks.store.database import open_database

        database = open_database(settings.database)
        try:
            return catalog.find(database, settings.home, "models", name)
        finally:
            database.close()

    return look_up
