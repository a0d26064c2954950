"""Checkpoints that can be trusted: sealed with the sha256 of every file, and only continued by the same training."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelworks.core.errors import Conflict, DiskFull
from modelworks.core.hashing import list_files
from modelworks.core.nouns import JsonObject
from modelworks.store.files import sync

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


class ResumeMismatch(Conflict):
    """A checkpoint belongs to another training."""

    code = "resume_mismatch"


def fingerprint(facts: JsonObject) -> str:
    """Digest everything that must be equal for a checkpoint to be continued."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def seal(checkpoint: Path, of: str) -> None:
    """Make a written checkpoint durable; it counts from here on.

    Args:
        of: the fingerprint of the training it belongs to.
    """
    entries = list_files(checkpoint)
    for entry in entries:
        sync(checkpoint / entry.path)
    files = [{"path": entry.path, "size_bytes": entry.size_bytes, "sha256": entry.sha256} for entry in entries]
    staged = checkpoint / f"{MANIFEST}.part"
    staged.write_text(json.dumps({"fingerprint": of, "files": files}, indent=1), encoding="utf-8")
    sync(staged)
    staged.rename(checkpoint / MANIFEST)
    sync(checkpoint)
    sync(checkpoint.parent)


def with_room(checkpoint: Path, write: Callable[[], None]) -> None:
    """Let `write` make `checkpoint`; where the disk is full once more, without any but the newest of those before it.

    Raises:
        DiskFull: that was not enough.
    """
    try:
        write()
    except Exception as error:
        if not is_full(error):
            raise
    else:
        return
    shutil.rmtree(checkpoint, ignore_errors=True)
    keep_newest(checkpoint.parent, 1)
    try:
        write()
    except Exception as error:
        if not is_full(error):
            raise
        needed = max((_size(path) for path in (checkpoint, *_newest_first(checkpoint.parent))), default=0)
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise DiskFull(_told_full(checkpoint.parent, needed)) from error


def is_full(error: BaseException) -> bool:
    """Whether the operating system had no space left, in the words of any of the libraries that write."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return True
    # safetensors, and torch's archives, which do not say why they cannot be written
    told = ("No space left", "File too large", "PytorchStreamWriter", "inline_container", "iostream error")
    return any(words in str(error) for words in told)


@contextmanager
def paused_when_full(folder: Path) -> Iterator[None]:
    """Turn a disk that is full, whatever was written, into what pauses the job."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFull(_told_full(folder)) from error


def _told_full(folder: Path, needed_bytes: int = 0) -> str:
    needed = f"{needed_bytes:,} bytes needed, " if needed_bytes else ""
    return (
        f"the disk is full: {needed}{shutil.disk_usage(folder).free:,} bytes free in {folder}; the job is paused at "
        "its last checkpoint: free some space and resume it"
    )


def newest(folder: Path) -> Path | None:
    """The newest sealed checkpoint, unread."""
    return next((path for path in _newest_first(folder) if (path / MANIFEST).exists()), None)


def keep_newest(folder: Path, limit: int) -> None:
    """Remove all but the newest `limit` checkpoints."""
    for checkpoint in _newest_first(folder)[limit:]:
        shutil.rmtree(checkpoint)


def newest_verified(folder: Path, of: str) -> Path | None:
    """Return the newest checkpoint that is whole, removing broken ones on the way.

    Raises:
        ResumeMismatch: it is whole, but of a training with other settings or data.
    """
    for checkpoint in _newest_first(folder):
        manifest = _verified_manifest(checkpoint)
        if manifest is None:
            shutil.rmtree(checkpoint)
            continue
        if manifest["fingerprint"] != of:
            raise ResumeMismatch(
                f"{checkpoint} was written by a training with other settings, data or model; "
                "start a new job, or remove the checkpoint"
            )
        return checkpoint
    return None


def step_of(checkpoint: Path) -> int:
    found = _FOLDER.fullmatch(checkpoint.name)
    return int(found.group(1)) if found else 0


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _FOLDER.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _verified_manifest(checkpoint: Path) -> JsonObject | None:
    try:
        manifest: JsonObject = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = [
        {"path": entry.path, "size_bytes": entry.size_bytes, "sha256": entry.sha256}
        for entry in list_files(checkpoint)
        if entry.path != MANIFEST
    ]
    return manifest if manifest.get("files") == found else None
