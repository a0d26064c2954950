"""What every TRL trainer here has in common: no word on the terminal or network, exact resume, no silent NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid
from modelworks.data.batches import order_by_length
from modelworks.data.render import ChatTemplate, load_tokenizer
from modelworks.train.checkpoints import step_of
from modelworks.train.optimizer import make_optimizer
from modelworks.train.strategy import Setup

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteLoss(Invalid):
    """The loss became NaN or infinite."""

    code = "non_finite_loss"


class LengthGrouped:
    """A sampler whose order follows from seed and epoch alone, so that a resumed run meets the same batches."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(order_by_length(self.lengths, self.batch_size, self.seed * 1_000_003 + self.epoch))


class Steady:
    """Goes before a TRL trainer in the bases of a class: `class SFT(Steady, SFTTrainer)`."""

    args: Any
    state: Any
    model: Any
    train_dataset: Any
    optimizer: Any
    real_tokens: int = 0

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: object, **__: object) -> None:
        pass

    def _get_train_sampler(self, _: object = None) -> LengthGrouped:
        return LengthGrouped(self.train_dataset["length"], self.args.per_device_train_batch_size, self.args.seed)

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
        self.real_tokens += self.count_tokens(inputs)
        loss: Tensor = super().training_step(model, inputs, *rest, **named)  # type: ignore[misc] # the next base has it
        if not math.isfinite(loss.item()):
            self._refuse("loss", loss.item())
        return loss

    def count_tokens(self, inputs: Any) -> int:
        """Count the tokens of a batch that are no padding."""
        return sum(inputs["lengths"]) if "lengths" in inputs else int(inputs["attention_mask"].sum())

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self.args.learning_rate, self.args.weight_decay)
        return self.optimizer

    def _prepare_dataset(self, dataset: Any, *_: object, **__: object) -> Any:
        # The rows are tokens already.
        return dataset

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc] # the next base has it
        if not math.isfinite(float(norm)):
            self._refuse("gradient norm", float(norm))
        return norm

    def _refuse(self, what: str, value: float) -> None:
        raise NonFiniteLoss(
            f"the {what} is {value} at step {self.state.global_step + 1}; "
            f"lower learning_rate (now {self.args.learning_rate:g}) or choose dtype fp32"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Weights alone: the tokenizer never changes, and the arguments would be a pickle.
        options = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
        self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc] # the next base has it
            return
        # PEFT's own way would turn bfloat16 adapters into float32.
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.model, load_file(Path(resume_from_checkpoint) / "adapter_model.safetensors"))

    def restore_finished(self, checkpoint: Path) -> bool:
        """Load `checkpoint` if it is that of the last step; the Trainer would add a step to it."""
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True


def train_or_resume(job: JobContext, trainer: Any, checkpoint: Path | None) -> None:
    if checkpoint is None:
        trainer.train()
        return
    job.log(f"resuming from step {step_of(checkpoint)}")
    if not trainer.restore_finished(checkpoint):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def trl_tokenizer(model_folder: Path, pad_id: int | None = None) -> Any:
    """TRL insists on a tokenizer, though the rows are tokens already; `pad_id` fills, else the end-of-text token."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, eos = load_tokenizer(model_folder), ChatTemplate.load(model_folder).eos_token
    pad = eos if pad_id is None else tokenizer.id_to_token(pad_id)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad)


def drop_reference(network: Any) -> None:
    """Remove the copy that TRL makes of a fresh adapter: the network with its adapter disabled is the reference."""
    if "ref" in getattr(network, "peft_config", {}):
        network.delete_adapter("ref")


def common_arguments(setup: Setup) -> dict[str, Any]:
    """The TrainingArguments that follow from the spec, for any TRL trainer's configuration class."""
    spec = setup.spec
    return {
        "output_dir": str(setup.job.checkpoints),
        "num_train_epochs": setup.num_train_epochs,
        "max_steps": spec.max_steps or -1,
        "per_device_train_batch_size": setup.per_device_train_batch_size,
        "per_device_eval_batch_size": setup.per_device_train_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "learning_rate": setup.learning_rate,
        "lr_scheduler_type": spec.lr_scheduler_type,
        "warmup_steps": spec.warmup_steps if spec.warmup_steps < 1 else int(spec.warmup_steps),
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.max_grad_norm,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": spec.save_steps,
        # Older checkpoints are removed only once the new one is sealed.
        "save_total_limit": None,
        "logging_strategy": "steps",
        "logging_steps": spec.logging_steps,
        "logging_nan_inf_filter": False,
        "seed": spec.seed,
        "use_cpu": setup.device == "cpu",
        # Weights are loaded in the dtype to compute in; autocast would cast them anew in every layer.
        "bf16": False,
        "fp16": False,
        "tf32": setup.device == "cuda" or None,
        "dataloader_pin_memory": setup.device == "cuda",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",
        "push_to_hub": False,
        "eval_strategy": "no",
    }
