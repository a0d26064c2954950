"""The trainer's callback: tells the job how far it is, stops when asked to, seals checkpoints."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelworks.core.errors import Cancelled
from modelworks.train import checkpoints
from modelworks.train.measuring import Measuring
from modelworks.train.reporting import report_elsewhere
from modelworks.train.samples import tell_samples
from modelworks.train.strategy import Setup, Training
from modelworks.train.trainer import Steady

TRAINING = "training"


class Reporter:
    """Mixed with transformers' TrainerCallback, which only exists once transformers is loaded."""

    def __init__(self, setup: Setup, trainer: Steady, stage: str, watched: Collection[str]) -> None:
        self.setup = setup
        self.job = setup.job
        self.trainer = trainer
        self.stage = stage
        self.watched = ("loss", "learning_rate", "grad_norm", *watched)
        self.began_at = self.logged_at = time.monotonic()
        self.first_step = self.logged_step = 0
        self.tokens_logged = 0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.began_at = self.logged_at = time.monotonic()
        self.first_step = self.logged_step = state.global_step
        self.job.progress(state.global_step, state.max_steps, "steps", stage=self.stage)

    @contextmanager
    def _stopping(self, control: Any) -> Iterator[None]:
        """Let a cancel out at once; a pause goes on to the end of the step, where a checkpoint is then written."""
        try:
            yield
        except Cancelled:
            if not self.job.pausing:
                raise
            control.should_save = True

    def on_substep_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        with self._stopping(control):
            self.job.agree()

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds_a_step = (time.monotonic() - self.began_at) / (state.global_step - self.first_step)
        with self._stopping(control):
            self.job.progress(
                state.global_step,
                state.max_steps,
                "steps",
                stage=self.stage,
                epoch=round(state.epoch, 3),
                eta_seconds=round(seconds_a_step * (state.max_steps - state.global_step), 1),
            )
            self.job.agree()

    def on_log(self, _args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        now = time.monotonic()
        seconds = max(now - self.logged_at, 1e-9)
        # The other processes' batches are as large, but for the last of an epoch.
        rate = (self.trainer.real_tokens - self.tokens_logged) * self.job.processes / seconds
        step_time = seconds / max(state.global_step - self.logged_step, 1)
        self.logged_at, self.tokens_logged, self.logged_step = now, self.trainer.real_tokens, state.global_step
        numbers = {key: float(logs[key]) for key in self.watched if logs.get(key) is not None}
        numbers |= {"epoch": round(float(state.epoch), 3), "step_time": round(step_time, 4)}
        numbers |= {"tokens_per_second": round(rate, 1), "memory_gb": round(peak_memory_gb(self.setup.device), 3)}
        # For the other places that are told.
        logs |= {key: numbers[key] for key in ("tokens_per_second", "memory_gb")}
        # What comes before the training proper must not be taken for it.
        prefix = "" if self.stage == TRAINING else f"{self.stage}/".replace(" ", "_")
        with self._stopping(control):
            self.job.metric(state.global_step, **{f"{prefix}{key}": value for key, value in numbers.items()})

    def on_prediction_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        self.job.check()

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if args.should_save:
            checkpoints.keep_newest(Path(args.output_dir), self.setup.spec.save_total_limit)
        self.job.check()
        if self.stage == TRAINING:
            tell_samples(self.setup, self.trainer.model, state.global_step)
        self.logged_at = time.monotonic()


def report(setup: Setup, trainer: Any, watched: Collection[str], stage: str = TRAINING) -> Reporter:
    """Attach the callback to `trainer`, in place of those that print; return it.

    Args:
        watched: numbers in the trainer's logs that are told besides the loss.
    """
    from transformers import PrinterCallback, TrainerCallback

    class Callback(Reporter, TrainerCallback):  # type: ignore[misc] # transformers is untyped
        pass

    trainer.setup = setup
    trainer.remove_callback(PrinterCallback)
    reporter = Callback(setup, trainer, stage, watched)
    trainer.add_callback(reporter)
    return reporter


def watch(setup: Setup, training: Training) -> Measuring:
    """Attach everything that watches the training proper."""
    reporter = report(setup, training.trainer, training.watched)
    report_elsewhere(setup, training.trainer)
    return Measuring(setup, training, reporter)


def peak_memory_gb(device: str) -> float:
    """The most memory that this process has held: of the GPU, or of the machine."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_reserved() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
