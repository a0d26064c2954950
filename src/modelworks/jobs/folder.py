"""A job's folder: spec.json, events.jsonl, stdout.log, checkpoints/, staged/, exit.json, and the lock a runner holds.

The lock is the only sign of life: it is taken before the runner exists, inherited by it, and freed by the kernel
when the last process of the run is gone, whatever killed it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from modelworks.core.nouns import Draft, Failure, FileEntry, JsonObject
from modelworks.store.files import try_lock, write_atomically


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """What a runner is told: spec.json."""

    job_id: str
    kind: str
    run: int
    spec: JsonObject
    # Name in the spec -> the artifact as JSON.
    inputs: JsonObject


@dataclass(frozen=True, kw_only=True)
class StagedDraft(Draft):
    """A Draft, hashed and flushed, waiting in `staged/` for the server to publish it; `folder` is the job's own."""

    digest: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """How a run ended: exit.json, written last. `outcome` is succeeded, failed, cancelled or paused.

    A run may pause by itself: `failure` is then what is in its way.
    """

    run: int
    outcome: str
    result: JsonObject | None = None
    failure: Failure | None = None
    drafts: tuple[StagedDraft, ...] = ()


_REPORT = TypeAdapter(RunReport)


class JobFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec, self.events, self.stdout = path / "spec.json", path / "events.jsonl", path / "stdout.log"
        self.checkpoints, self.staged, self.exit = path / "checkpoints", path / "staged", path / "exit.json"
        self.lock, self.process = path / "lock", path / "process.json"
        # With how many threads the run is to compute.
        self.threads = path / "threads"

    def prepare(self, order: RunOrder) -> None:
        """Make the folder ready for a run: nothing of an earlier one remains but checkpoints, events and logs."""
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.staged, ignore_errors=True)
        self.exit.unlink(missing_ok=True)
        self.process.unlink(missing_ok=True)
        write_atomically(self.spec, json.dumps(asdict(order)).encode())

    def read_order(self) -> RunOrder:
        return RunOrder(**json.loads(self.spec.read_bytes()))

    def write_report(self, report: RunReport) -> None:
        write_atomically(self.exit, json.dumps(asdict(report), default=os.fspath).encode())

    def read_report(self, run: int) -> RunReport | None:
        """Return what run number `run` wrote as its last act, or None if it did not get that far."""
        try:
            report = _REPORT.validate_python(json.loads(self.exit.read_bytes()))
        except FileNotFoundError:
            return None
        return report if report.run == run else None

    def take_lock(self) -> int | None:
        """Return a descriptor that holds the lock, or None when a run holds it."""
        return try_lock(self.lock)

    def is_locked(self) -> bool:
        if not self.lock.exists():
            return False
        descriptor = self.take_lock()
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def tail(self, lines: int) -> str:
        """The last lines that the runner printed: the end of a bug report."""
        if not self.stdout.exists():
            return ""
        with self.stdout.open("rb") as file:
            file.seek(max(0, self.stdout.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def clean(self, *, keep_checkpoints: bool) -> None:
        """Remove what an ended job no longer needs."""
        shutil.rmtree(self.staged, ignore_errors=True)
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)


def describe_process() -> bytes:
    """What a runner writes into process.json at its start, so that another server can find it again."""
    return json.dumps(
        {"pid": os.getpid(), "boot": psutil.boot_time(), "started": psutil.Process().create_time()}
    ).encode()
