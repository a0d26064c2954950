"""One training in two processes, joined by gloo on the processor."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeJob
from modelworks.core.errors import Cancelled
from modelworks.train.launch import ProcessDied
from modelworks.train.run import run
from modelworks.train.spec import TrainSpec
from shelf import conversations, model_at
from tiny import tiny_llama

ROWS = [(f"say {word} {number} times", f"{word} " * number) for word in ("yes", "no") for number in range(1, 9)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    return {"tiny": model_at(tiny_llama(folder / "tiny")), "rows": conversations(folder / "rows", ROWS, ROWS[:4])}


def spec(**changes: Any) -> TrainSpec:
    settings: dict[str, Any] = {
        "model": "tiny", "dataset": "rows", "max_steps": 6, "per_device_train_batch_size": 2, "num_processes": 2,
        "learning_rate": 1e-2, "lora_r": 4, "save_steps": 50, "max_length": 128, "device": "cpu", "eval_steps": 2,
    }  # fmt: skip
    return TrainSpec.model_validate(settings | changes)


def losses(*jobs: FakeJob) -> list[float]:
    return [line["loss"] for job in jobs for line in job.metrics if "loss" in line]


class PausedAtThree(FakeJob):
    def metric(self, step: int, **values: float) -> None:
        self.pausing, self.cancel_after = step == 3, 0 if step == 3 else None
        super().metric(step, **values)


@pytest.mark.timeout(300)
def test_two_processes_learn_what_one_does_from_batches_twice_as_large(tmp_path: Path, inputs: dict[str, Any]) -> None:
    alone = FakeJob(tmp_path / "alone", inputs=inputs)
    result = run(spec(num_processes=1, per_device_train_batch_size=4), alone)
    paused = PausedAtThree(tmp_path / "two", inputs=inputs)

    with pytest.raises(Cancelled):
        run(spec(), paused)
    assert multiprocessing.active_children() == []
    resumed = FakeJob(tmp_path / "two", inputs=inputs)
    together = run(spec(), resumed)

    # The pause was heard by both at the end of the step that was asked for, or of the one after.
    assert 3 <= len(losses(paused)) <= 4
    assert losses(paused, resumed) == pytest.approx(losses(alone), rel=1e-5)
    assert together["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert len(resumed.drafts) == 1


@pytest.mark.timeout(300)
def test_a_process_that_dies_fails_the_training_and_leaves_no_other(tmp_path: Path, inputs: dict[str, Any]) -> None:
    class Deadly(FakeJob):
        def metric(self, step: int, **values: float) -> None:
            super().metric(step, **values)
            if step == 2 and "loss" in values:
                multiprocessing.active_children()[0].kill()

    job = Deadly(tmp_path, inputs=inputs)

    with pytest.raises(ProcessDied, match="process 2 of the training ended by SIGKILL"):
        run(spec(), job)

    assert multiprocessing.active_children() == []
    assert job.drafts == []
