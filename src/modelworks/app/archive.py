"""A published folder as one file to take away."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelworks.core.nouns import AnyArtifact, FileEntry

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A published folder as an uncompressed tar, made while it is read: it is never held, nor written."""

    file_name: str
    size_bytes: int
    _entries: tuple[tuple[bytes, Path, int], ...]

    def __iter__(self) -> Iterator[bytes]:
        for header, path, size in self._entries:
            yield header
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    yield block
            yield bytes(-size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def archive_of(artifact: AnyArtifact) -> Archive:
    """The folder of a model, an adapter or a dataset, under its name."""
    entries = tuple(_entry(artifact, file) for file in artifact.files)
    blocks = sum(len(header) + size + -size % tarfile.BLOCKSIZE for header, _, size in entries)
    return Archive(f"{_short(artifact)}.tar", blocks + 2 * tarfile.BLOCKSIZE, entries)


def _short(artifact: AnyArtifact) -> str:
    return artifact.name.rsplit("/", 1)[-1].replace(":", "-")


def _entry(made: AnyArtifact, file: FileEntry) -> tuple[bytes, Path, int]:
    info = tarfile.TarInfo(f"{_short(made)}/{file.path}")
    info.size, info.mode, info.mtime = file.size_bytes, 0o644, int(made.created_at.timestamp())
    return info.tobuf(tarfile.PAX_FORMAT), made.path / file.path, file.size_bytes
