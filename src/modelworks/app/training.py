"""Trainings as any door tells of them: how far one is, and which ones go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from modelworks.app.services import Services
from modelworks.core.nouns import Adapter, EventType, Job, JsonObject, JsonValue, Model
from modelworks.core.states import JobState
from modelworks.store import events


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is; zeros and None for what is not known yet. `epoch` counts what is done, with a fraction."""

    percent: float = 0.0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    total_epochs: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    eta_seconds: float | None = None


def progress_of(services: Services, job: Job) -> TrainingProgress:
    """What the newest events of a training job say."""
    told = services.progress(job.id)
    body = told.body if told else {}
    metric = events.last_of_type(services.database, job.id, EventType.METRIC)
    if body.get("stage") == "preparing":
        return TrainingProgress(total_epochs=_number(job.spec.get("num_train_epochs")) or 0.0)
    # After its steps a training counts other things, e.g. rows that are measured.
    in_steps = told is not None and body.get("unit") == "steps"
    # The newer of both knows the step: progress is not told at every one, and a new run goes back.
    newest = max(
        (event for event in (told if in_steps else None, metric) if event), key=attrgetter("seq"), default=None
    )
    step = int(_number(newest.body.get("step" if newest is metric else "done")) or 0) if newest else 0
    total = int(_number(body.get("total")) or 0) if in_steps else step
    epoch = (_number(newest.body.get("epoch")) or 0.0) if newest else 0.0
    by_steps = job.spec.get("max_steps") and step
    return TrainingProgress(
        percent=round(100 * step / total, 1) if total else 0.0,
        step=step,
        total_steps=total,
        epoch=epoch,
        total_epochs=round(epoch * total / step, 2) if by_steps else _number(job.spec.get("num_train_epochs")) or 0.0,
        loss=_number(metric.body.get("loss")) if metric else None,
        learning_rate=_number(metric.body.get("learning_rate")) if metric else None,
        eta_seconds=_number(body.get("eta_seconds")) if in_steps and not job.state.is_final else None,
    )


def unfinished_training(services: Services) -> list[Job]:
    """Every training that waits or runs, oldest first."""
    return services.jobs(states=(JobState.QUEUED, JobState.RUNNING), kind="train", limit=1000)[::-1]


def shortened(spec: Mapping[str, object], model: Model | Adapter) -> tuple[JsonObject, tuple[str, ...]]:
    """What to change in a TrainSpec's body where the model reads less than a row may have, and how to tell it."""
    wanted = spec.get("max_length")
    if not isinstance(model, Model) or not isinstance(wanted, int) or not 0 < model.context_length < wanted:
        return {}, ()
    limit = model.context_length
    return {"max_length": limit}, (f"rows are cut at {limit} tokens, not at {wanted}: {model.name} reads no more",)


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) else None
