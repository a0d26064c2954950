"""Bodies of the Model Finetuning API. What is done otherwise than asked stands in an answer's `notes`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from modelworks.app.file_training import FileFacts
from modelworks.core.nouns import JsonObject

STATUS = Literal["queued", "running", "completed", "failed", "cancelled"]
EXAMPLES: JsonDict = {"examples": [{"dataset_name": "alpaca", "num_train_epochs": 1, "max_steps": 100}]}


class FinetuneIn(BaseModel):
    # Unknown keys are kept, so that they can be told.
    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False, json_schema_extra=EXAMPLES)

    dataset_name: str = Field(min_length=1, description="supported: a name, or a file under an allowed path")
    model_name: str = Field("unsloth/llama-3-8b-bnb-4bit", min_length=1, description="supported: by name or path")
    max_seq_length: int = Field(2048, ge=8, le=10**7, description="supported: lowered to what the model reads, told")
    num_train_epochs: float = Field(3, gt=0, le=10**6, description="supported, where max_steps is not above 0")
    per_device_train_batch_size: int = Field(2, ge=1, le=2**16, description="supported")
    gradient_accumulation_steps: int = Field(4, ge=1, le=2**16, description="supported")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="supported")
    max_steps: int | None = Field(60, ge=-1, le=10**9, description="supported: 0, -1 or null leave it to the epochs")
    warmup_steps: int = Field(5, ge=0, le=10**9, description="supported")
    save_steps: int = Field(25, ge=1, le=10**9, description="supported: a training goes on from there after a crash")
    logging_steps: int = Field(1, ge=1, le=10**9, description="supported")
    output_dir: str = Field("./results", description="supported: the result is also at OUTPUT_DIR/JOB_ID")
    lora_r: int = Field(16, ge=1, le=1024, description="supported")
    lora_alpha: int = Field(16, ge=1, le=2**20, description="supported")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="supported")


class FinetuneOut(BaseModel):
    job_id: str = Field(description="supported: a UUID")
    status: STATUS = Field(description="supported: always queued")
    message: str = Field(description="supported")
    dashboard_url: str = Field(description="supported: with the port that is really open")
    notes: list[str] = Field(description="supported; what is done otherwise than asked; not in their document")
    dataset_info: FileFacts | None = Field(None, description="supported: where a file was sent")
    config: JsonObject | None = Field(None, description="supported: where a file was sent")


class ProgressOut(BaseModel):
    percent: float = Field(description="supported")
    step: int = Field(description="supported")
    total_steps: int = Field(description="supported")
    epoch: float = Field(description="supported: with a fraction")
    loss: float | None = Field(description="supported")
    eta_seconds: float | None = Field(description="supported")


class JobOut(BaseModel):
    job_id: str = Field(description="supported")
    status: STATUS = Field(description="supported")
    progress: ProgressOut | None = Field(description="supported: null until the job begins")
    logs: list[JsonObject] = Field(description="supported: the last ten entries")
    error: str | None = Field(description="supported")


class JobEntryOut(BaseModel):
    id: str = Field(description="supported")
    status: STATUS = Field(description="supported")
    config: JsonObject = Field(description="supported: what it was asked, defaults included")
    created_at: str = Field(description="supported: the machine's own time, without a zone, as all times here")
    logs: list[JsonObject] = Field(description="supported: the last ten entries")
    started_at: str = Field("", description="supported: absent until then, as the following")
    completed_at: str = Field("", description="supported")
    failed_at: str = Field("", description="supported")
    cancelled_at: str = Field("", description="supported")
    message: str = Field("", description="supported: of a completed job")
    error: str = Field("", description="supported: of a failed job")


class JobsOut(BaseModel):
    jobs: list[JobEntryOut] = Field(description="supported: trainings of any origin, newest first, at most 1,000")
    total: int = Field(description="supported")


class LogsOut(BaseModel):
    job_id: str = Field(description="supported")
    logs: list[JsonObject] = Field(
        description="supported: every entry, as training_logs.jsonl has it: timestamp, type, level, message; of a "
        "training_step also step, epoch, step_time, learning_rate, loss, grad_norm"
    )


class CancelOut(BaseModel):
    job_id: str = Field(description="supported")
    status: STATUS = Field(description="supported: cancelled, once its process is gone")
    message: str = Field(description="supported")


class DashboardOut(BaseModel):
    dashboard_url: str = Field(description="supported")
    status: Literal["available"] = Field("available", description="supported")
    description: str = Field("Real-time training monitoring dashboard", description="supported")


class ErrorOut(BaseModel):
    error: str = Field(description="supported")
    detail: str = Field(description="supported")
    status_code: int = Field(description="supported; not in their document")
    message: str = Field(description="supported; not in their document")
