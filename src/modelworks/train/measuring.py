"""The held-out rows, measured while a training goes on: told, watched for when to stop, the best weights kept."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelworks.train import checkpoints
from modelworks.train.strategy import Setup, Training


@contextmanager
def undisturbed(network: Any) -> Iterator[None]:
    """Look at the network between two steps: neither its mode nor what is drawn next differs afterwards."""
    import numpy as np
    import torch

    was_training, drawn, drawn_by_numpy = network.training, random.getstate(), np.random.get_state()
    network.eval()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)
        network.train(was_training)


class Measuring:
    """Measures every eval_steps, in place of the trainer's own evaluation, and at the end."""

    def __init__(self, setup: Setup, training: Training, reporter: object) -> None:
        self.setup = setup
        self.training = training
        self.trainer = training.trainer
        self.reporter = reporter
        self.best = setup.job.checkpoints / "best"
        # The step and what was found at it.
        self.newest: tuple[int, dict[str, float]] = (-1, {})
        if setup.spec.eval_steps is not None:
            self._attach(setup.spec.eval_steps)

    def _attach(self, eval_steps: int) -> None:
        from transformers import EarlyStoppingCallback
        from transformers.trainer_utils import IntervalStrategy

        # Only now: when it is made, the trainer would want rows that it can measure by itself.
        args, spec = self.trainer.args, self.setup.spec
        args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, eval_steps
        args.metric_for_best_model, args.greater_is_better = "eval_loss", False
        args.restore_callback_states_from_checkpoint = True
        if spec.early_stopping_patience is not None:
            self.trainer.add_callback(
                EarlyStoppingCallback(spec.early_stopping_patience, spec.early_stopping_threshold)
            )
        self.trainer.measuring = self.measure

    def measure(self) -> dict[str, float]:
        """Measure between two steps and tell; the trainer remembers the best."""
        from transformers import Trainer

        trainer, state = self.trainer, self.trainer.state
        remembered = len(state.log_history)
        with undisturbed(self.training.network), self._alone(), self.setup.job.holding():
            numbers = self.training.measure()
        del state.log_history[remembered:]
        told = {f"eval_{name}": value for name, value in numbers.items()}
        # Not by TRL's own `log`, which would tell the numbers of the coming steps before their time.
        Trainer.log(trainer, told)
        with self.setup.job.holding():
            self.setup.job.metric(state.global_step, **told)
        if "eval_loss" not in told:
            trainer.args.metric_for_best_model, trainer.args.greater_is_better = "eval_reward", True
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, state, trainer.control, told)
        # A run that is cut behind its last step need not find that out again.
        trainer.control.should_save |= trainer.control.should_training_stop
        self.newest = (state.global_step, numbers)
        if self.setup.spec.load_best_model_at_end and self._is_best(told[trainer.args.metric_for_best_model]):
            self._keep(state.global_step)
        return told

    def finish(self) -> dict[str, float]:
        """Load the best weights, if they are to be published, and return the numbers of those that are."""
        step = int(self.trainer.state.global_step)
        if self.setup.spec.load_best_model_at_end:
            best = checkpoints.newest_verified(self.best, self.setup.fingerprint)
            if best is not None and checkpoints.step_of(best) != step:
                step = checkpoints.step_of(best)
                self.setup.job.log(f"the weights of step {step} were the best, and are published")
                self.trainer._load_from_checkpoint(str(best))
        return self.newest[1] if self.newest[0] == step else self.training.measure()

    def _is_best(self, value: float) -> bool:
        best = self.trainer.state.best_metric
        return best is None or (value > best if self.trainer.args.greater_is_better else value < best)

    def _keep(self, step: int) -> None:
        folder = self.best / f"checkpoint-{step}"
        if self.trainer.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        self.trainer.save_model(str(folder))
        if self.trainer.is_world_process_zero():
            checkpoints.seal(folder, self.setup.fingerprint)
            checkpoints.keep_newest(self.best, 1)
        self.trainer.accelerator.wait_for_everyone()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hide from all but our own callback what strategies measure by `evaluate`: it is told once, by us."""
        handler = self.trainer.callback_handler
        everybody = handler.callbacks
        handler.callbacks = [self.reporter]
        try:
            yield
        finally:
            handler.callbacks = everybody
