"""What every TRL trainer here has in common: no word on the terminal or network, exact resume, no silent NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelworks.core.context import JobContext
from modelworks.core.errors import Cancelled, Invalid, OutOfMemory
from modelworks.data.batches import order_by_length
from modelworks.data.render import ChatTemplate, load_tokenizer
from modelworks.train import checkpoints, microbatches, sharding
from modelworks.train.checkpoints import step_of
from modelworks.train.microbatches import Budget
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
    accelerator: Any
    train_dataset: Any
    optimizer: Any
    lr_scheduler: Any
    current_gradient_accumulation_steps: float
    real_tokens: int = 0
    # Set by what reports on the training.
    setup: Setup
    budget: Budget
    # Measures the held-out rows between two steps.
    measuring: Callable[[], dict[str, float]]
    # Whether a batch holds two rows of each unit, the second in its second half.
    paired = False
    # The batches of the step in progress, and the number of the last whole one.
    kept: Sequence[Any] = ()
    kept_at: int = -1
    # Random states: when the step began, when the one before ended (a new epoch lies between), and the newest.
    begun: Any = None
    ended: Any = None
    newest: Any = None
    # The weights as a whole, while a checkpoint is written of what is divided.
    gathered: dict[str, Tensor] | None = None

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: object, **__: object) -> None:
        pass

    def _get_train_sampler(self, _: object = None) -> LengthGrouped:
        rows = self.args.per_device_train_batch_size * self.args.world_size
        return LengthGrouped(self.train_dataset["length"], rows, self.args.seed)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if self.kept_at != self.state.global_step:
            self.kept, self.kept_at = [], self.state.global_step
            self.begun, self.ended = random_state(), self.newest
        self.kept = [*self.kept, inputs]
        self.real_tokens += self.count_tokens(inputs)
        loss = self._compute(model, inputs, num_items_in_batch)
        while loss is None:
            # From the step's beginning: what failed may have added half of its gradients.
            model.zero_grad()
            set_random_state(self.begun)
            for batch in self.kept:
                loss = self._compute(model, batch, num_items_in_batch)
                if loss is None:
                    break
        if not math.isfinite(loss.item()):
            self._refuse("loss", loss.item(), [inputs])
        self.newest = random_state()
        return loss

    def _compute(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor | None:
        """Add the gradients of a batch, piece by piece; None if memory ran out, after which less is tried."""
        # Sums over tokens, and means over pairs; other losses look at the batch as a whole.
        divisible = self.args.world_size == 1 and (self.paired or ("lengths" in inputs and "labels" in inputs))
        pieces = microbatches.split(inputs, self.budget.tokens, paired=self.paired) if divisible else [(inputs, 1.0)]
        total: Any = 0
        batches = self.current_gradient_accumulation_steps
        try:
            for piece, share in pieces:
                self.setup.job.check()
                # What is no sum over the step is a mean over the rows of its batch, and over its batches.
                self.current_gradient_accumulation_steps = batches / share
                total = total + super().training_step(model, piece, num_items_in_batch)  # type: ignore[misc] # mixed in
                self.budget.watch()
        except (RuntimeError, MemoryError) as error:
            if not microbatches.ran_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        else:
            return total  # type: ignore[no-any-return] # a tensor
        finally:
            self.current_gradient_accumulation_steps = batches
        # Not while the error is handled: its traceback holds what the computation had taken.
        microbatches.release()
        self._take_less(max(microbatches.cost(piece) for piece, _ in pieces) if divisible else 0, reason)
        return None

    def _take_less(self, tokens: int, reason: str) -> None:
        """Halve what is computed at once; then keep no activations; then give up.

        Args:
            tokens: what was the most at once; 0 where it cannot be divided.
        """
        step = self.state.global_step + 1
        least = max(max(batch.get("lengths") or [1]) for batch in self.kept) * (1 + self.paired) if tokens else 0
        if min(tokens, self.budget.tokens) > least:
            self.budget.tokens = min(tokens, self.budget.tokens) // 2
            how = f"micro-batch halved to {self.budget.tokens} tokens"
        # What a trainer has counted or made up for an earlier batch of the step cannot be had again.
        # And processes that hand one another their weights cannot compute a step again one by one.
        elif (
            (tokens or len(self.kept) == 1)
            and not (self.budget.checkpointing or self.args.gradient_checkpointing)
            and self.setup.spec.parallel == "ddp"
        ):
            self.budget.checkpointing = True
            enable_checkpointing(self.model)
            how = "gradient_checkpointing turned on"
        else:
            raise OutOfMemory(
                f"step {step} takes more memory than there is, one row at a time ({reason}); "
                f"lower max_length (now {self.setup.max_length}) or per_device_train_batch_size, "
                "set gradient_checkpointing, or take strategy qlora or a smaller model"
            )
        self.budget.save()
        self.setup.job.log(f"out of memory at step {step}: {how}; the step is computed again", level="warning")

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

    def _evaluate(self, *_: object, **__: object) -> dict[str, float]:
        return self.measuring()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc] # the next base has it
        norm = norm.full_tensor() if sharding.is_divided(norm) else norm
        if not math.isfinite(float(norm)):
            self._refuse("gradient norm", float(norm), self.kept)
        return norm

    def _refuse(self, what: str, value: float, batches: Sequence[Any]) -> None:
        lines = sorted(line for batch in batches if "lines" in batch for line in batch["lines"])
        rows = f", in rows {', '.join(str(line) for line in lines)} of the data" if lines else ""
        last = checkpoints.newest(Path(self.args.output_dir))
        kept = f"the checkpoint of step {step_of(last)} is kept; " if last else ""
        raise NonFiniteLoss(
            f"the {what} is {value} at step {self.state.global_step + 1}{rows}; {kept}"
            f"look at these rows, lower learning_rate (now {self.args.learning_rate:g})"
            + ("" if str(self.setup.dtype) == "torch.float32" else " or choose dtype fp32")
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

        def write() -> None:
            super(Steady, self)._save_checkpoint(model, trial)  # type: ignore[misc] # the next base has it
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.seal(folder, self.setup.fingerprint)

        # Once, by all: where the disk is full the first writes again alone.
        self.gathered = self._gather()
        if self.args.should_save:
            checkpoints.with_room(folder, write)
        else:
            write()
        self.gathered = None

    @property
    def _own(self) -> str:
        """What is added to the name of a file that a process writes for itself."""
        rank = self.args.process_index if self.setup.spec.trains_parts else 0
        return f"-{rank}" if rank else ""

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        return nullcontext()  # of each batch at once: whole gradients would take the memory that dividing saves

    def _gather(self) -> dict[str, Tensor] | None:
        if self.setup.spec.trains_parts:
            return sharding.gather(self.model, keep=self.args.should_save)
        return None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc] # the next base has it
        if self._own:
            import torch

            torch.save(self.optimizer.state_dict(), Path(output_dir) / f"optimizer{self._own}.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        import torch

        for name, kept in ((f"optimizer{self._own}", self.optimizer), ("scheduler", self.lr_scheduler)):
            kept.load_state_dict(torch.load(Path(checkpoint) / f"{name}.pt", map_location="cpu", weights_only=True))

    def keep_last_step(self) -> None:
        """Write the checkpoint of the last whole step as if the one in progress had not begun."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.kept_at == self.state.global_step and not (folder / checkpoints.MANIFEST).exists():
            set_random_state(self.ended)
            self._save_checkpoint(self.model, None)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Weights alone: the tokenizer never changes, and the arguments would be a pickle.
        options = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
        weights = self._gather() if self.gathered is None else self.gathered
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict or weights, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.setup.spec.trains_parts:
            sharding.scatter(self.model, Path(resume_from_checkpoint))
            return
        if not hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc] # the next base has it
            return
        # PEFT's own way would turn bfloat16 adapters into float32.
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.model, load_file(Path(resume_from_checkpoint) / "adapter_model.safetensors"))

    def restore_finished(self, checkpoint: Path) -> bool:
        """Load `checkpoint` if its training was at its end, or stopped early; the Trainer would add a step to it."""
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        control = state.stateful_callbacks["TrainerControl"]["args"]
        if state.global_step < state.max_steps and not control["should_training_stop"]:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True


def train_or_resume(job: JobContext, trainer: Any, checkpoint: Path | None) -> None:
    if trainer.args.n_gpu > 1:
        trainer.args._n_gpu = 1  # where several are seen the Trainer would use them all, by DataParallel
    first = microbatches.FIRST_TOKENS[trainer.args.device.type]
    budget = trainer.budget = Budget.read(job.checkpoints / _memory_file(trainer), first)
    if budget.begin():
        budget.tokens = max(1, min(budget.tokens, first) // 2)
        budget.save()
        job.log(f"the last run was ended for its memory; micro-batch halved to {budget.tokens} tokens", level="warning")
    if budget.checkpointing:
        enable_checkpointing(trainer.model)
    # Generating asks the network once a token; what a PEFT model computes in training does not pass here.
    network = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
    if trainer.setup.spec.parallel == "fsdp":
        sharding.divide(network, trainer.args.device.type, adapted=not trainer.setup.spec.trains_parts)
        # Nothing need be wrapped around them. Told only now: the Trainer takes it that there are no checkpoints then.
        trainer.is_distributed_loading_by_transformers = True
    watched = network.register_forward_pre_hook(lambda *_: job.check())
    try:
        if checkpoint is None:
            trainer.newest = random_state()
            trainer.train()
        else:
            job.log(f"resuming from step {step_of(checkpoint)}")
            if not trainer.restore_finished(checkpoint):
                trainer.train(resume_from_checkpoint=str(checkpoint))
    except Cancelled:
        _leave(job, trainer)
        raise
    finally:
        watched.remove()
        budget.end()


def _memory_file(trainer: Any) -> str:
    """Each process remembers for itself."""
    rank = trainer.args.process_index
    return f"memory-{rank}.json" if rank else "memory.json"


def _leave(job: JobContext, trainer: Any) -> None:
    """What a run that is stopped leaves: all it has reached; of a cancelled one, an adapter alone, which is small."""
    adapted = bool(hasattr(trainer.model, "peft_config") and trainer.state.global_step)
    if job.pausing or adapted:
        trainer.keep_last_step()
    if job.pausing or not trainer.args.should_save:
        return
    checkpoints.keep_newest(Path(trainer.args.output_dir), int(adapted))
    if adapted:
        job.log(f"cancelled after step {trainer.state.global_step}; its adapter is kept, a retry goes on from it")


def enable_checkpointing(network: Any) -> None:
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def random_state() -> Any:
    import torch

    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None


def set_random_state(state: Any) -> None:
    import torch

    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])


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
        "ddp_find_unused_parameters": False,
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
