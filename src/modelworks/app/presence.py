"""One server to a workspace: who it is, and how others find it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from modelworks.core import clock
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict
from modelworks.store import files

# Somebody who only looks holds the lock for a moment; a server holds it for good.
PATIENCE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    pid: int
    url: str
    started_at: datetime


_CODEC = TypeAdapter(ServerInfo)


@contextmanager
def only_server(settings: Settings) -> Iterator[None]:
    """Be the server of the workspace for as long as the block lasts, however it ends.

    Raises:
        Conflict: naming the one that is.
    """
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _take_lock(_lock_path(settings))
    if lock is None:
        first = _read(_info_path(settings))
        who = f"process {first.pid} at {first.url}" if first else "another process, which is still starting"
        raise Conflict(f"{settings.home} has a server already: {who}; use that one, or another --home")
    try:
        _info_path(settings).unlink(missing_ok=True)
        yield
    finally:
        _info_path(settings).unlink(missing_ok=True)
        os.close(lock)


def announce(settings: Settings, url: str) -> ServerInfo:
    """Tell others on this machine where the server listens."""
    info = ServerInfo(pid=os.getpid(), url=url, started_at=clock.now())
    body = asdict(info) | {"started_at": clock.to_iso(info.started_at)}
    files.write_atomically(_info_path(settings), json.dumps(body).encode())
    return info


def someone_works(settings: Settings) -> bool:
    """Whether a server or a command looks after the workspace's jobs."""
    lock = files.try_lock(settings.home / "worker.lock")
    if lock is not None:
        os.close(lock)
    return lock is None


def running_server(settings: Settings) -> ServerInfo | None:
    """The workspace's server, if one runs and listens."""
    path = _lock_path(settings)
    if not path.exists():
        return None
    lock = files.try_lock(path)
    if lock is not None:
        os.close(lock)
        return None
    return _read(_info_path(settings))


def _take_lock(path: Path) -> int | None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (lock := files.try_lock(path)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return lock


def _read(path: Path) -> ServerInfo | None:
    try:
        return _CODEC.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None


def _lock_path(settings: Settings) -> Path:
    return settings.home / "server.lock"


def _info_path(settings: Settings) -> Path:
    return settings.home / "server.json"
