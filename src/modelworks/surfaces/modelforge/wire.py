"""Bodies of the ModelForge REST API. Of what a training is asked, whatever is not done is told in `warnings`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

Status = Literal["idle", "training", "completed", "stopped", "failed"]
Moment = Annotated[datetime, PlainSerializer(lambda at: f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}", return_type=str)]
Task = Literal["text-generation", "summarization", "extractive-question-answering"]
Provider = Literal["huggingface", "unsloth"]
Strategy = Literal["sft", "qlora", "rlhf", "dpo"]
TASKS, PROVIDERS, STRATEGIES = ([*get_args(each)] for each in (Task, Provider, Strategy))


class StartIn(BaseModel):
    model_config = ConfigDict(extra="allow")  # and told

    task: Task = Field(description="supported: says which columns are learned, and how they are asked")
    model_name: str = Field(min_length=1, description="supported: a model that is here, by name or path")
    dataset: str = Field(min_length=1, description="supported: an uploaded one, or a file under an allowed path")
    provider: Provider = Field(
        "huggingface", description="supported: unsloth where it is installed and has a GPU; `message` says so"
    )
    strategy: Strategy = Field("sft", description="supported: dpo and rlhf learn from prompt, chosen, rejected")
    max_seq_length: int | None = Field(2048, ge=8, le=10**7, description="supported: lowered to what the model reads")
    num_train_epochs: int = Field(3, ge=1, le=10**6, description="supported")
    per_device_train_batch_size: int = Field(4, ge=1, le=2**16, description="supported")
    gradient_accumulation_steps: int = Field(4, ge=1, le=2**16, description="supported")
    max_steps: int = Field(-1, ge=-1, le=10**9, description="supported: above 0 it wins over the epochs")
    learning_rate: float | None = Field(None, gt=0, le=1, description="supported; by default the strategy's own")
    lr_scheduler_type: str = Field("cosine", description="supported: also linear, constant; any other runs as cosine")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="translated: warmup_steps, as a share")
    weight_decay: float = Field(0.001, ge=0, le=1e6, description="supported")
    max_grad_norm: float = Field(0.3, ge=0, le=1e6, description="supported")
    gradient_checkpointing: bool = Field(False, description="supported; by default off, where theirs is on")
    lora_r: int = Field(16, ge=1, le=256, description="supported")
    lora_alpha: int = Field(32, ge=1, le=2**20, description="supported")
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="supported")
    bf16: bool = Field(False, description="translated: dtype bf16; false is auto")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="translated: mps is auto")
    reward_model: str | None = Field(None, description="translated: what rlhf rewards by; not in their document")
    use_4bit: bool | None = Field(None, description="refused: only the strategy qlora loads the model in 4 bit")
    use_8bit: bool = Field(False, description="refused: nothing trains in 8 bit here")
    bnb_4bit_compute_dtype: str | None = Field(None, description="refused: computes in the training's dtype")
    bnb_4bit_quant_type: str = Field("nf4", description="refused: qlora is always nf4")
    use_nested_quant: bool = Field(False, description="refused: the strategy decides")
    fp16: bool = Field(False, description="refused: bf16 or fp32, by the machine")
    optim: str = Field("adamw_torch", description="refused: always AdamW with 32-bit states")
    per_device_eval_batch_size: int | None = Field(None, description="refused: measures in training batches")
    group_by_length: bool = Field(True, description="refused: rows are always grouped by length")
    packing: bool = Field(False, description="refused: rows are packed on a CPU, padded on a GPU")
    use_chat_template: bool = Field(True, description="refused: the model's chat template is always used")
    eval_split: float | None = Field(None, description="refused: rows are held out when data comes in")
    eval_steps: int | None = Field(None, description="refused: held-out rows are measured at the end")
    compute_specs: str | None = Field(None, description="refused: the machine is looked at instead")


class StartOut(BaseModel):
    status: Literal["started"] = Field("started", description="supported")
    job_id: str = Field(description="supported: train_ and six digits")
    message: str = Field(description="supported: says so where another provider runs than asked for")
    provider_used: str = Field("huggingface", description="supported: not in their document")
    warnings: list[str] = Field(description="supported: not in their document; what is done otherwise than asked")


class StatusOut(BaseModel):
    status: Status = Field("idle", description="supported: what waits is training as well")
    progress: float = Field(0.0, description="supported: percent of the steps, to one decimal")
    current_epoch: int = Field(0, description="supported: the one that is being learned, from 1")
    total_epochs: int = Field(0, description="supported")
    current_step: int = Field(0, description="supported")
    total_steps: int = Field(0, description="supported: 0 until the rows are counted")
    loss: float | None = Field(None, description="supported: null until the first step")
    learning_rate: float = Field(0.0, description="supported")
    job_id: str | None = Field(None, description="supported: not in their document")
    message: str = Field("", description="supported: not in their document; why it failed")


class DoneOut(BaseModel):
    status: str = Field(description="supported: stopped or deleted; how a training ended before it could be stopped")
    message: str = Field(description="supported")


class InfoOut(BaseModel):
    name: str = Field("ModelForge", description="supported: as the program answers, beyond its document")
    description: str = Field("Fine-tuning by Modelworks", description="supported: as the program answers")
    providers: list[str] = Field(PROVIDERS, description="supported: both are taken; start_training says which one runs")
    strategies: list[str] = Field(STRATEGIES, description="supported")
    tasks: list[str] = Field(TASKS, description="supported")
    available_providers: list[str] = Field(PROVIDERS, description="supported: as the program answers")
    available_strategies: list[str] = Field(STRATEGIES, description="supported: as the program answers")
    supported_tasks: list[str] = Field(TASKS, description="supported: as the program answers")
    version: str = Field("v2", description="supported")


class ModelOut(BaseModel):
    id: int = Field(description="supported: never given twice")
    name: str = Field(description="supported: also a name for any other door")
    base_model: str = Field(description="supported")
    task: str = Field(description="supported")
    created_at: Moment = Field(description="supported: seconds, UTC")
    size_mb: int = Field(description="supported: megabytes, rounded up")


class ModelDetailOut(ModelOut):
    provider: str = Field(description="translated: the one that ran")
    strategy: str = Field(description="supported")
    training_params: dict[str, int | float] = Field(description="supported: num_epochs, batch_size, learning_rate")
    metrics: dict[str, float | None] = Field(description="supported: final_loss, perplexity = exp(final_loss)")


class UploadedOut(BaseModel):
    status: Literal["uploaded"] = Field("uploaded", description="supported")
    filename: str = Field(description="supported: with or without its ending the `dataset` of a training")
    num_examples: int = Field(description="supported: without repeated and empty ones")
    validation: dict[str, bool | list[str]] = Field(description="supported: valid, and errors: the first 20 bad lines")


class DatasetOut(BaseModel):
    filename: str = Field(description="supported")
    num_examples: int = Field(description="supported")
    size_mb: float = Field(description="supported: megabytes")
    uploaded_at: Moment = Field(description="supported: seconds, UTC")


class GenerateIn(BaseModel):
    model_id: int | str = Field(description="supported: also the model's name")
    prompt: str = Field(min_length=1, description="supported: asked as a turn of a chat")
    max_new_tokens: int = Field(100, ge=1, le=10**6, description="supported")
    temperature: float = Field(0.7, ge=0, le=100, description="supported: 0 takes the likeliest token each time")
    top_p: float = Field(0.9, gt=0, le=1, description="supported")


class GenerateOut(BaseModel):
    generated_text: str = Field(description="supported: the answer alone")
    tokens_generated: int = Field(description="supported")
    generation_time_ms: int = Field(description="supported: loading the model included")
