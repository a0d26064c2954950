"""Between ModelForge's words and ours."""

from __future__ import annotations

import math

from modelworks.app.dataset_files import file_name
from modelworks.app.task_training import DEFAULT_TASK, public_id
from modelworks.app.training import TrainingProgress
from modelworks.core.nouns import Adapter, Dataset, Job, JsonObject, Model
from modelworks.core.states import JobState
from modelworks.surfaces.modelforge import wire
from modelworks.web.refused import told

STATUS: dict[JobState, wire.Status] = {
    JobState.QUEUED: "training", JobState.RUNNING: "training", JobState.PAUSED: "stopped",
    JobState.SUCCEEDED: "completed", JobState.FAILED: "failed", JobState.CANCELLED: "stopped",
}  # fmt: skip
SAME = (
    "num_train_epochs", "per_device_train_batch_size", "learning_rate", "gradient_accumulation_steps", "weight_decay",
    "max_grad_norm", "gradient_checkpointing", "lora_r", "lora_alpha", "lora_dropout", "strategy", "dataset",
    "provider",
)  # fmt: skip
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")


def to_spec(asked: wire.StartIn) -> JsonObject:
    """A TrainSpec's body."""
    return {name: getattr(asked, name) for name in SAME} | {
        "model": asked.model_name,
        "max_length": asked.max_seq_length or 2048,
        "max_steps": asked.max_steps if asked.max_steps > 0 else None,
        "lr_scheduler_type": asked.lr_scheduler_type if asked.lr_scheduler_type in SCHEDULES else "cosine",
        "warmup_steps": asked.warmup_ratio,
        "dtype": "bf16" if asked.bf16 else "auto",
        "device": "auto" if asked.device == "mps" else asked.device,
        "params": {"reward_model": asked.reward_model} if asked.reward_model else {},
    }


def warnings_of(asked: wire.StartIn) -> list[str]:
    """What of a request is done otherwise."""
    warnings = told(asked) if asked.strategy != "qlora" else told(asked.model_copy(update={"use_4bit": None}))
    if asked.lr_scheduler_type not in SCHEDULES:
        warnings.append(f"lr_scheduler_type: {asked.lr_scheduler_type} runs as cosine; there is {', '.join(SCHEDULES)}")
    return [*warnings, "device: mps is not used here, auto is"] if asked.device == "mps" else warnings


def to_status(job: Job, progress: TrainingProgress) -> wire.StatusOut:
    return wire.StatusOut(
        status=STATUS[job.state], progress=progress.percent, current_epoch=math.ceil(progress.epoch),
        total_epochs=math.ceil(progress.total_epochs), current_step=progress.step, total_steps=progress.total_steps,
        loss=progress.loss, learning_rate=progress.learning_rate or 0.0, job_id=public_id(job),
        message=job.error.message if job.error else "",
    )  # fmt: skip


def to_model(found: Model | Adapter, labels: JsonObject) -> wire.ModelDetailOut:
    epochs, batch_size, rate = (float(str(found.recipe[name])) for name in SAME[:3])
    epochs = int(epochs) if epochs.is_integer() else epochs
    loss = found.metrics.get("train_loss")
    return wire.ModelDetailOut(
        id=found.number, name=found.name, created_at=found.created_at, size_mb=math.ceil(found.size_bytes / 1e6),
        base_model=next((parent.name for parent in found.parents if parent.role == "base"), ""),
        task=str(labels.get("task", DEFAULT_TASK)), strategy=str(found.recipe["strategy"]),
        provider=str(found.recipe.get("provider", "huggingface")),
        training_params={"num_epochs": epochs, "batch_size": int(batch_size), "learning_rate": rate},
        metrics={"final_loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700.0))},
    )  # fmt: skip


def to_dataset(found: Dataset) -> wire.DatasetOut:
    size, at = round(found.size_bytes / 1e6, 3), found.created_at
    return wire.DatasetOut(filename=file_name(found), num_examples=found.rows, size_mb=size, uploaded_at=at)
