"""Content-addressed folders: staged, fsynced, then published by one rename; read-only from then on."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelworks.core.errors import OutOfSpace
from modelworks.core.nouns import ArtifactKind

SHELVES = {
    ArtifactKind.DATASET: "datasets", ArtifactKind.MODEL: "models", ArtifactKind.ADAPTER: "adapters",
    ArtifactKind.FILE: "files",
}  # fmt: skip
# Below this the machine itself suffers; nothing new is started.
LEAST_FREE_BYTES = 2 << 30


def place_of(home: Path, kind: ArtifactKind, digest: str) -> Path:
    return home / SHELVES[kind] / digest[:2] / digest


def settle(staged: Path, place: Path) -> None:
    """Move a staged, fsynced folder to its content address. Doing it again, or finding it there, is fine."""
    if place.exists():
        shutil.rmtree(staged, ignore_errors=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(place)
    for path in place.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    sync(place.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and itself, to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() or path.is_dir():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flush one file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by one rename: a reader sees the old or the new whole, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync(path.parent)


def mirror(place: Path, target: Path) -> None:
    """Show a published folder at `target` too, whole or not at all, and point `latest` beside it there.

    Its files are the same files where the file system allows it, else copies.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(place, partial, copy_function=_link)
        sync_tree(partial)
        partial.rename(target)
    point_at(target.parent / "latest", target)


def point_at(link: Path, target: Path) -> None:
    """Let the symbolic link `link` lead to `target`, whatever it led to before; never over a real file."""
    if link.exists() and not link.is_symlink():
        return
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target, link.parent))
    new.rename(link)


def discard(folder: Path) -> None:
    """Remove a published folder: first out of sight by a rename, then for good."""
    doomed = folder.with_name(f".{folder.name}.removed")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def sweep(home: Path, used: Collection[str], older_than_seconds: float) -> list[str]:
    """Remove what a killed process left half-done: staging folders and content that nothing was recorded for."""
    places = [folder for shelf in SHELVES.values() for folder in (home / shelf).glob("*/*")]
    left = [folder for folder in places if folder.relative_to(home).as_posix() not in used]
    limit = time.time() - older_than_seconds
    doomed = [folder for folder in [*left, *(home / "staging").glob("*")] if folder.lstat().st_mtime < limit]
    for folder in doomed:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.relative_to(home).as_posix() for folder in doomed]


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on `path`, or None when another process holds it.

    The kernel frees it when the last process that has the descriptor is gone, whatever ended it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def check_space(home: Path, needed_bytes: int) -> None:
    """Raises OutOfSpace, with both figures, when `needed_bytes` would not leave the machine its reserve."""
    free = shutil.disk_usage(home).free
    if free - needed_bytes < LEAST_FREE_BYTES:
        raise OutOfSpace(
            f"{needed_bytes / 1e9:.1f} GB needed and {LEAST_FREE_BYTES / 1e9:.1f} GB kept in reserve, "
            f"but {free / 1e9:.1f} GB free in {home}; free some space or move MODELWORKS_HOME"
        )


@contextmanager
def told_when_full(home: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" into our error."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise OutOfSpace(f"no space left in {home}; free some and run it again") from error
        raise
