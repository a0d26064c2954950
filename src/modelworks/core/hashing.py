"""Content addresses: sha256 of a file, and of a folder as its sorted list of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modelworks.core.nouns import FileEntry


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Hash every file under `folder`, sorted by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, hash_file(path)) for path in paths)


def digest_of(files: tuple[FileEntry, ...]) -> str:
    """The sha256 over `sha256  size  path` lines: equal content, equal digest, wherever it lies."""
    lines = "".join(f"{file.sha256}  {file.size_bytes}  {file.path}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
