"""OpenAI's words for files, fine-tuning jobs, their events and checkpoints: pure translation, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from modelworks.app.finetuning import JOB_PREFIX, ORGANIZATION
from modelworks.core.errors import NotFound, Problem
from modelworks.core.nouns import Event, EventType, File, Job, JsonObject, JsonValue
from modelworks.core.states import JobState

T = TypeVar("T")
_EVENT_ID = re.compile(r"ftevent-(.+)-(\d{1,9})")
_METHODS = {"sft": "supervised", "qlora": "supervised", "grpo": "reinforcement"}
# The hyperparameters that any method has.
_COMMON = ("n_epochs", "batch_size", "learning_rate_multiplier")
_LEVELS = {"warning": "warn", "error": "error"}
_METRICS = {"loss": "train_loss", "mean_token_accuracy": "train_mean_token_accuracy"}
_STATES = {
    JobState.QUEUED: "The job is queued",
    JobState.RUNNING: "Fine-tuning job started",
    JobState.PAUSED: "The job is paused",
    JobState.SUCCEEDED: "The job has successfully completed",
    JobState.FAILED: "The job has failed",
    JobState.CANCELLED: "The job has been cancelled",
}


def page_of(found: Sequence[T], limit: int, translate: Callable[[T], JsonObject]) -> JsonObject:
    """The first `limit` of what was found; whatever is beyond them shows that there is more."""
    data = [translate(item) for item in found[:limit]]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": list(data), "has_more": len(found) > limit, **ends}


def file_object(file: File) -> JsonObject:
    return {
        "id": file.name, "object": "file", "bytes": file.size_bytes, "created_at": int(file.created_at.timestamp()),
        "filename": file.filename, "purpose": file.purpose, "status": "error" if file.problem else "processed",
        "status_details": file.problem, "expires_at": file.expires_at,
    }  # fmt: skip


def job_object(
    job: Job, hyperparameters: JsonObject, results: Sequence[File], finishes_at: int | None = None
) -> JsonObject:
    """A training in OpenAI's words; one that came by another door has the name of its dataset for a file."""
    spec, asked = job.spec, _asked(job)
    method = _METHODS.get(str(spec["strategy"]), str(spec["strategy"]))
    three = {key: hyperparameters[key] for key in _COMMON}
    params = spec.get("params")
    grader = {"grader": params["grader"]} if isinstance(params, dict) and params.get("grader") else {}
    failed = job.error if job.state is JobState.FAILED else None
    return {
        "id": JOB_PREFIX + job.id, "object": "fine_tuning.job", "created_at": int(job.created_at.timestamp()),
        "finished_at": int(job.finished_at.timestamp()) if job.finished_at else None,
        "estimated_finish": finishes_at, "model": spec["model"], "organization_id": ORGANIZATION,
        "fine_tuned_model": _published(job), "status": job.state.value,
        "training_file": asked.get("training_file", spec["dataset"]), "validation_file": asked.get("validation_file"),
        "result_files": [file.name for file in results], "hyperparameters": dict(three), "seed": spec["seed"],
        "method": {"type": method, method: {"hyperparameters": hyperparameters, **grader}},
        "trained_tokens": _trained_tokens(job), "integrations": [], "metadata": asked.get("metadata"),
        "error": {"code": failed.code, "message": failed.message, "param": None} if failed else None,
        "user_provided_suffix": asked.get("suffix"),
    }  # fmt: skip


def has_metadata(job: Job, query: Mapping[str, str]) -> bool:
    """Whether a job has what `metadata[key]=value` asks for; `metadata=null` asks for none."""
    found = _asked(job).get("metadata") or {}
    if query.get("metadata") == "null":
        return not found
    wanted = {key[9:-1]: value for key, value in query.items() if key.startswith("metadata[") and key.endswith("]")}
    return isinstance(found, dict) and wanted.items() <= found.items()


def event_object(event: Event) -> JsonObject:
    body = event.body
    shown: JsonObject = {"level": "info", "type": "message", "data": None}
    match event.type:
        case EventType.METRIC:
            data = {_METRICS.get(key, key): value for key, value in body.items()}
            loss = f", training loss={body['loss']:.4f}" if isinstance(body.get("loss"), float) else ""
            shown |= {"type": "metrics", "data": data, "message": f"Step {body['step']}{loss}"}
        case EventType.STATE:
            state = JobState(str(body["state"]))
            reason = f": {body['reason']}" if "reason" in body else ""
            shown |= {"message": _STATES[state] + reason, "level": "error" if state is JobState.FAILED else "info"}
        case EventType.ARTIFACT:
            shown["message"] = f"New fine-tuned model created: {body['name']}"
        case _:
            shown |= {"message": body.get("message"), "level": _LEVELS.get(str(body.get("level")), "info")}
    at = int(event.at.timestamp())
    return {"id": f"ftevent-{event.job_id}-{event.seq}", "object": "fine_tuning.job.event", "created_at": at, **shown}


def seq_of(job: Job, event_id: str | None) -> int | None:
    """The number of an event of this job; raises NotFound for what is none."""
    if event_id is None:
        return None
    found = _EVENT_ID.fullmatch(event_id)
    if found is None or found[1] != job.id:
        what = f"no such event of this job: {event_id!r}"
        raise NotFound(what, problems=(Problem("after", what),))
    return int(found[2])


def checkpoint_objects(job: Job) -> list[JsonObject]:
    """The checkpoints that a name can serve: the model at the end, as those before it are gone by then."""
    name, result = _published(job), job.result
    if name is None or result is None or job.finished_at is None:
        return []
    metrics: JsonObject = {"step": result.get("steps"), "train_loss": result.get("train_loss")}
    metrics |= {f"full_valid_{key}": result[key] for key in ("loss", "mean_token_accuracy") if key in result}
    return [
        {
            "id": f"ftckpt-{job.id}", "object": "fine_tuning.job.checkpoint", "step_number": result.get("steps"),
            "created_at": int(job.finished_at.timestamp()), "fine_tuning_job_id": JOB_PREFIX + job.id,
            "fine_tuned_model_checkpoint": name, "metrics": metrics,
        }
    ]  # fmt: skip


def _asked(job: Job) -> dict[str, JsonValue]:
    asked = job.labels.get("fine_tuning")
    return asked if isinstance(asked, dict) else {}


def _published(job: Job) -> JsonValue:
    return job.result.get("name") if job.state is JobState.SUCCEEDED and job.result else None


def _trained_tokens(job: Job) -> int | None:
    """Tokens of the rows times the epochs, or as much of it as the steps came to."""
    spec, result = job.spec, job.result or {}
    tokens, rows, steps = (_number(result.get(key)) for key in ("train_tokens", "train_rows", "steps"))
    if not (tokens and rows and steps):
        return None
    gone = steps * _number(spec["per_device_train_batch_size"]) * _number(spec["gradient_accumulation_steps"]) / rows
    return round(tokens * (gone if spec["max_steps"] else min(gone, _number(spec["num_train_epochs"]))))


def _number(value: JsonValue) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
