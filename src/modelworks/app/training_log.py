"""A training's story as log entries: for whoever asks, and in files of the workspace that can be read by any tool.

`jobs/ID/training_logs.jsonl` grows with the job's events. In the workspace itself, `training_logs.jsonl` leads to the
training that began last and `lora_model` to the newest adapter.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from modelworks.app.services import Services
from modelworks.core.errors import ModelworksError
from modelworks.core.nouns import Adapter, Event, EventType, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.store import events, files

logger = logging.getLogger(__name__)
LOG_NAME = "training_logs.jsonl"
ADAPTER_NAME = "lora_model"
LOGGED = (EventType.METRIC, EventType.LOG)
_NUMBERS = ("step_time", "learning_rate", "loss", "grad_norm")


def local_time(at: datetime) -> str:
    """ISO 8601 in the machine's own zone, which is not told: as Python's datetime.now() says it."""
    return at.astimezone().replace(tzinfo=None).isoformat(timespec="milliseconds")


def log_entry(event: Event) -> JsonObject:
    """One event as a log entry."""
    at = local_time(event.at)
    named: JsonObject = {"job_id": event.job_id, "seq": event.seq}
    if event.type is EventType.LOG:
        level = str(event.body.get("level", "info")).upper()
        return {"timestamp": at, "type": "log", "level": level, "message": event.body.get("message"), **named}
    step, epoch = event.body.get("step"), event.body.get("epoch")
    return {
        "timestamp": at, "type": "training_step", "level": "INFO", "message": f"Step {step} completed",
        "step": step, "epoch": int(epoch) if isinstance(epoch, int | float) else None,
        **{name: event.body.get(name) for name in _NUMBERS}, **named,
    }  # fmt: skip


def log_of(services: Services, job: Job) -> list[JsonObject]:
    """Every entry of a job's log."""
    return [entry for page in _pages(services, job.id, 0) for entry in _entries(page)]


def end_of_log(services: Services, job: Job, limit: int = 10) -> list[JsonObject]:
    """The last entries of a job's log."""
    return [log_entry(event) for event in events.newest(services.database, job.id, LOGGED, limit)]


@dataclass
class TrainingFiles:
    """Keeps the files up with what happens. For the one worker of a workspace: nobody else may write them."""

    services: Services
    _written: dict[str, int] = field(default_factory=dict)

    def keep_up(self, job_id: str) -> None:
        """Write what is new of a job. What fails is said, and made up for the next time."""
        try:
            job = self.services.job(job_id)
            if job.kind == "train" and job.started_at is not None:
                self._append(job)
            if job.state is JobState.SUCCEEDED:
                self.point_at_newest_adapter()
        except (OSError, ModelworksError) as error:
            self._written.pop(job_id, None)
            logger.warning("the training log is behind", extra={"job": job_id, "reason": str(error)})

    def point_at_newest_adapter(self) -> None:
        """Let `lora_model` lead to the adapter that was published last."""
        newest = next((item for item in self.services.servable() if isinstance(item, Adapter)), None)
        if newest is not None:
            files.point_at(self.services.settings.home / ADAPTER_NAME, newest.path)

    def _append(self, job: Job) -> None:
        path = self.services.folder(job.id).path / LOG_NAME
        if not path.exists():
            # Pointed at first: whoever finds the file made knows that this has been done.
            files.point_at(self.services.settings.home / LOG_NAME, path)
            path.touch()
        after = self._written[job.id] if job.id in self._written else _last_written(path)
        for page in _pages(self.services, job.id, after):
            with path.open("ab") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in _entries(page)).encode())
            self._written[job.id] = page[-1].seq
        if job.state.is_final:
            self._written.pop(job.id, None)


def _pages(services: Services, job_id: str, after: int) -> Iterator[list[Event]]:
    while page := services.events(job_id, after):
        yield page
        after = page[-1].seq


def _entries(page: Sequence[Event]) -> list[JsonObject]:
    return [log_entry(event) for event in page if event.type in LOGGED]


def _last_written(path: Path) -> int:
    """The number of the last event in a log; what a kill left half-written behind it is cut off."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)
    last = data[data.rfind(b"\n", 0, max(whole - 1, 0)) + 1 : whole]
    return int(json.loads(last)["seq"]) if last else 0
