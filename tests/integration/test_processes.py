"""One training in two processes, joined by gloo on the processor."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import FakeJob
from modelworks.core.errors import Cancelled
from modelworks.core.nouns import Draft
from modelworks.train.checkpoints import newest
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


def apart(one: Draft, other: Draft) -> float:
    """By how much the weights of two results differ at most."""
    (path,), (theirs,) = one.folder.glob("*.safetensors"), other.folder.glob("*.safetensors")
    found, expected = load_file(path), load_file(theirs)
    assert found.keys() == expected.keys()
    assert (one.folder / "README.md").is_file()
    return max(float((weight - expected[name]).abs().max()) for name, weight in found.items())


class PausedAtThree(FakeJob):
    def metric(self, step: int, **values: float) -> None:
        self.pausing, self.cancel_after = step == 3, 0 if step == 3 else None
        super().metric(step, **values)


@pytest.mark.timeout(300)
def test_two_processes_learn_what_one_does_from_batches_twice_as_large(tmp_path: Path, inputs: dict[str, Any]) -> None:
    alone, job = (FakeJob(tmp_path / name, inputs=inputs) for name in ("alone", "two"))
    result = run(spec(num_processes=1, per_device_train_batch_size=4), alone)

    together = run(spec(), job)

    assert multiprocessing.active_children() == []
    assert losses(job) == pytest.approx(losses(alone), rel=1e-5)
    assert together["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert len(job.drafts) == 1


def all_weights(**changes: Any) -> TrainSpec:
    return spec(**{"parallel": "fsdp", "tuning": "full", "lora_r": 16} | changes)


@pytest.mark.timeout(300)
def test_divided_weights_learn_the_same_and_go_on_after_a_pause(tmp_path: Path, inputs: dict[str, Any]) -> None:
    alone = FakeJob(tmp_path / "alone", inputs=inputs)
    result = run(all_weights(parallel="ddp", num_processes=1, per_device_train_batch_size=4), alone)
    paused, resumed = PausedAtThree(tmp_path / "two", inputs=inputs), FakeJob(tmp_path / "two", inputs=inputs)

    with pytest.raises(Cancelled):
        run(all_weights(), paused)
    (kept,) = paused.checkpoints.glob("checkpoint-*")
    moments = sorted(path.stat().st_size for path in kept.glob("optimizer*.pt"))
    together = run(all_weights(), resumed)

    # The pause was heard by both at the end of the step that was asked for, or of the one after.
    assert 3 <= len(losses(paused)) <= 4
    assert losses(paused, resumed) == pytest.approx(losses(alone), rel=1e-5)
    assert together["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert apart(resumed.drafts[0], alone.drafts[0]) < 0.01
    # Each process keeps the moments of its half.
    assert len(moments) == 2
    assert moments[1] < 1.1 * moments[0]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gpu")
@pytest.mark.timeout(300)
def test_two_gpus_divide_the_weights(tmp_path: Path, inputs: dict[str, Any]) -> None:
    alone, job = (FakeJob(tmp_path / name, inputs=inputs) for name in ("alone", "two"))
    on_gpu = {"device": "cuda", "dtype": "fp32"}
    run(all_weights(**on_gpu, parallel="ddp", num_processes=1, per_device_train_batch_size=4), alone)

    run(all_weights(**on_gpu), job)

    assert losses(job) == pytest.approx(losses(alone), rel=1e-3)
    assert apart(job.drafts[0], alone.drafts[0]) < 0.01


@pytest.mark.timeout(300)
def test_an_adapter_learns_over_divided_weights(tmp_path: Path, inputs: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"merge": True, "export_gguf": "f16", "sample_prompts": ("say yes",), "save_steps": 3}
    alone = FakeJob(tmp_path / "alone", inputs=inputs)
    run(spec(**asked | {"num_processes": 1, "per_device_train_batch_size": 4}), alone)
    job = FakeJob(tmp_path / "two", inputs=inputs)

    run(spec(**asked | {"parallel": "fsdp"}), job)

    assert losses(job) == pytest.approx(losses(alone), rel=1e-5)
    assert [line for line in job.logs if "sample" in line] == [line for line in alone.logs if "sample" in line]
    assert [draft.name for draft in job.drafts] == ["tiny-rows", "tiny-rows-merged", "tiny-rows-gguf"]
    assert all(apart(*both) < 0.01 for both in zip(job.drafts[:2], alone.drafts, strict=False))


@pytest.mark.timeout(300)
def test_a_process_that_dies_fails_the_training_and_leaves_no_other(tmp_path: Path, inputs: dict[str, Any]) -> None:
    class Deadly(FakeJob):
        def metric(self, step: int, **values: float) -> None:
            super().metric(step, **values)
            if step == 4 and "loss" in values:
                multiprocessing.active_children()[0].kill()

    job = Deadly(tmp_path, inputs=inputs)

    with pytest.raises(ProcessDied, match="process 2 of the training ended by SIGKILL"):
        run(all_weights(save_steps=2), job)

    assert multiprocessing.active_children() == []
    assert job.drafts == []
    assert newest(job.checkpoints)
