"""What may be asked of a training, in TRL's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from modelworks.core.spec import Spec
from modelworks.train.aliases import in_our_words


class TrainSpec(Spec):
    """Fine-tune a model on a dataset."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2-135m", "dataset": "mine", "name": "me/first", "num_train_epochs": 2, "lora_r": 16}
            ]
        }
    )

    model: str = Field(description="the model, or the adapter, to start from: a name, alias or path")
    dataset: str = Field(description="the dataset to learn: a name or path")
    strategy: str = Field("sft", description="how to learn, e.g. sft: imitate the answers")
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the strategy")
    name: str | None = Field(None, description="name to publish under; by default MODEL-DATASET")
    replace: bool = Field(False, description="move the name from an older artifact to this one")
    output_dir: str | None = Field(
        None, description="also place the result at OUTPUT_DIR/JOB_ID, relative to the workspace"
    )

    tuning: Literal["lora", "full"] = Field("lora", description="lora: train a small adapter; full: train every weight")
    lora_r: int = Field(16, ge=1, le=1024, description="rank of the adapter")
    lora_alpha: float = Field(32, gt=0, description="scale of the adapter is lora_alpha / lora_r")
    use_dora: bool = Field(False, description="also learn the length of every weight vector (DoRA); slower")
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(lora_r), for high ranks")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's inputs; slow on a CPU")
    lora_target: str | tuple[str, ...] = Field(
        "all-linear", description="layers to adapt: all-linear, or names such as q_proj v_proj"
    )

    num_train_epochs: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="times to go through the rows; auto: the strategy's own"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps instead of epochs")
    per_device_train_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="rows of a batch; auto: the strategy's own. What is computed at once is found by memory",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches added up before each step")
    max_length: Annotated[int, Field(ge=8)] | Literal["auto"] = Field(
        "auto", description="tokens of a row that are kept; auto: what the model reads, at most 2048"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto", description="peak learning rate; auto: the strategy's own, e.g. 2e-4 for sft with lora"
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup_steps: float = Field(0.03, ge=0, description="steps of warm-up; below 1 a share of all steps")
    weight_decay: float = Field(0.0, ge=0, description="pull of every weight towards 0")
    max_grad_norm: float = Field(1.0, ge=0, description="longer gradients are cut to this norm; 0 never")
    gradient_checkpointing: bool = Field(False, description="a quarter slower in much less memory")

    save_steps: int = Field(50, ge=1, description="steps between checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept while the job runs")
    logging_steps: int = Field(1, ge=1, description="steps between metrics")
    eval_steps: int | None = Field(
        None, ge=1, description="steps between measurements on the held-out rows; by default only at the end"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop once so many measurements in a row were no better than the best; needs eval_steps"
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="by how much a measurement must be better to count")
    load_best_model_at_end: bool = Field(False, description="publish the weights of the best measurement, not the last")
    sample_prompts: tuple[str, ...] = Field((), description="prompts to answer at every checkpoint, to be watched")
    sample_max_new_tokens: int = Field(64, ge=1, description="tokens of such an answer")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="other places to write the metrics to, where their packages are installed"
    )
    merge: bool = Field(False, description="also publish the whole model with the adapter merged in, as NAME-merged")
    export_gguf: Literal["f16", "q8_0"] | None = Field(
        None, description="also publish the whole model as one GGUF file, as NAME-gguf"
    )

    seed: int = Field(42, ge=0, lt=2**32, description="same seed, same data, same machine: same weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the processor computes in it")
    num_processes: int = Field(1, ge=1, le=64, description="processes to train with, each on a GPU of its own")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: every process holds all weights; fsdp: they are divided among the processes"
    )
    packing: bool | Literal["auto"] = Field(
        "auto",
        description="compute rows as one sequence without padding, what they begin alike with once; auto: on a CPU",
    )
    use_liger_kernel: bool = Field(
        False,
        description="on a GPU, compute norms, positions and MLPs by Liger's kernels, where they are installed",
    )
    torch_compile: bool = Field(
        False, description="on a GPU, compile the layers: the first steps take minutes, the others less"
    )
    provider: Literal["huggingface", "unsloth"] = Field(
        "huggingface", description="unsloth: faster on a GPU, where it is installed; otherwise huggingface all the same"
    )

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, body: Any) -> Any:
        return cls.renamed(body) if isinstance(body, Mapping) else body

    @classmethod
    def renamed(cls, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` with the fields' own names; raises ValueError for two of one field."""
        return in_our_words(body)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is named: the one to start from, and what judges its answers in rlhf."""
        judge = self.params.get("reward_model")
        return (self.model, judge) if isinstance(judge, str) else (self.model,)

    @property
    def trains_parts(self) -> bool:
        """Whether each process trains its part of the weights; an adapter is not divided."""
        return self.parallel == "fsdp" and self.tuning == "full"

    @property
    def published_name(self) -> str:
        model, dataset = (name.rstrip("/").rsplit("/", 1)[-1] for name in (self.model, self.dataset))
        return self.name or f"{model}-{dataset}".replace(":", "-")

    @property
    def merged_name(self) -> str:
        return f"{self.published_name}-merged"

    @property
    def gguf_name(self) -> str:
        return f"{self.published_name}-gguf"
