"""Between the Model Finetuning API's words and ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from modelworks.app.training import TrainingProgress
from modelworks.app.training_log import local_time
from modelworks.core.errors import Invalid
from modelworks.core.nouns import Job, JsonObject
from modelworks.core.spec import parse_spec
from modelworks.core.states import JobState
from modelworks.surfaces.finetuning_api import wire
from modelworks.web.receiving import read_object

STATUS: Mapping[JobState, wire.STATUS] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSED: "queued",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
FILE_TYPES = (".csv", ".json", ".jsonl")
# Theirs -> TrainSpec's; the rest is called the same.
RENAMED = {"dataset_name": "dataset", "model_name": "model", "max_seq_length": "max_length"}
FIELDS = tuple(wire.FinetuneIn.model_fields)


def read_json(content: bytes) -> wire.FinetuneIn:
    """Raises Invalid for what is no object of theirs."""
    body = read_object(content, 'send e.g. {"dataset_name": "alpaca"}')
    # Null stands for the default, but for max_steps, where it has a meaning.
    given = {key: value for key, value in body.items() if value is not None or key == "max_steps"}
    return parse_spec(wire.FinetuneIn, given)


def read_form(fields: Mapping[str, str], label: str) -> wire.FinetuneIn:
    """Raises Invalid for a file of another kind, or a field that cannot be read."""
    suffix = PurePath(label).suffix.lower()
    if suffix not in FILE_TYPES:
        raise Invalid(f"File must be one of: {', '.join(FILE_TYPES)}. Got: {suffix or label}")
    given = {key: value for key, value in fields.items() if value}
    return parse_spec(wire.FinetuneIn, {"dataset_name": label} | given)


def to_spec(asked: wire.FinetuneIn) -> JsonObject:
    """A TrainSpec's body."""
    body = {RENAMED.get(name, name): getattr(asked, name) for name in FIELDS}
    return body | {"max_steps": asked.max_steps if asked.max_steps and asked.max_steps > 0 else None}


def to_config(job: Job) -> JsonObject:
    """What a training was asked, in their words, whoever asked."""
    return {name: job.spec.get(RENAMED.get(name, name)) for name in FIELDS}


def to_progress(job: Job, progress: TrainingProgress) -> wire.ProgressOut | None:
    if job.started_at is None:
        return None
    return wire.ProgressOut(**{name: getattr(progress, name) for name in wire.ProgressOut.model_fields})


def to_entry(job: Job, logs: list[JsonObject]) -> wire.JobEntryOut:
    status = STATUS[job.state]
    times = {"created_at": job.created_at, "started_at": job.started_at}
    if job.state.is_final:
        times[f"{status}_at"] = job.finished_at
    told = {name: local_time(at) for name, at in times.items() if at}
    if job.state is JobState.SUCCEEDED:
        told["message"] = "Training completed successfully"
    if job.error:
        told["error"] = job.error.message
    return wire.JobEntryOut.model_validate(
        {"id": job.id, "status": status, "config": to_config(job), "logs": logs} | told
    )
