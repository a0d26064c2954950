"""What a user sees of a training while it goes on: held-out loss, samples, other places that are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import FakeJob, LostJob
from modelworks.core.errors import Cancelled
from modelworks.train.run import run
from modelworks.train.spec import TrainSpec
from shelf import conversations, model_at, preferences
from tiny import tiny_llama

ROWS = [(f"say {word} {number} times", f"{word} " * number) for word in ("yes", "no") for number in range(1, 7)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    pairs = [(ask, say, "never") for ask, say in ROWS]
    return {
        "tiny": model_at(tiny_llama(folder / "tiny")),
        # Held out is the opposite of what is taught, so that it gets worse.
        "rows": conversations(folder / "rows", ROWS, [(ask, say[::-1]) for ask, say in ROWS[:4]]),
        "pairs": preferences(folder / "pairs", pairs, validation=4),
    }


def spec(**changes: Any) -> TrainSpec:
    settings: dict[str, Any] = {
        "model": "tiny", "dataset": "rows", "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "lora_r": 4, "lora_dropout": 0.1, "save_steps": 3, "max_length": 128, "device": "cpu", "eval_steps": 2,
    }  # fmt: skip
    return TrainSpec.model_validate(settings | changes)


def measured(job: FakeJob) -> dict[int, float]:
    return {int(line["step"]): line["eval_loss"] for line in job.metrics if "eval_loss" in line}


def weights(job: FakeJob) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(job.drafts[0].folder / "adapter_model.safetensors")
    return found


def same(one: FakeJob, other: FakeJob) -> bool:
    return all(torch.equal(weight, weights(other)[name]) for name, weight in weights(one).items())


def test_measuring_and_sampling_leave_the_course_as_it_is(tmp_path: Path, inputs: dict[str, Any]) -> None:
    watched, alone = (FakeJob(tmp_path / name, inputs=inputs) for name in ("watched", "alone"))

    result = run(spec(sample_prompts=("say yes", "say no"), sample_max_new_tokens=3), watched)
    run(spec(eval_steps=None), alone)

    assert same(watched, alone)
    assert list(measured(watched)) == [2, 4, 6, 8]
    assert measured(watched)[8] == result["loss"]
    assert {"eval_loss", "eval_perplexity"} <= watched.metrics[2].keys()
    assert all(0.1 < line["memory_gb"] < 64 for line in watched.metrics if "loss" in line)
    # At every checkpoint, the last step's too.
    samples = [line for line in watched.logs if line.startswith("sample at step")]
    assert [line.split(":")[0][-1] for line in samples] == ["3", "3", "6", "6", "8", "8"]
    assert samples[0].startswith("sample at step 3: 'say yes' -> ")


def test_dpo_measures_by_its_own_numbers_and_goes_the_same_course(tmp_path: Path, inputs: dict[str, Any]) -> None:
    watched, alone = (FakeJob(tmp_path / name, inputs=inputs) for name in ("watched", "alone"))
    asked = {"strategy": "dpo", "dataset": "pairs", "lora_dropout": 0.0, "max_steps": 4, "logging_steps": 3}

    run(spec(**asked), watched)
    run(spec(**asked | {"eval_steps": None}), alone)

    assert same(watched, alone)
    assert (
        next(line for line in watched.metrics if "loss" in line)["rewards/margins"]
        == alone.metrics[0]["rewards/margins"]
    )
    assert {"eval_loss", "eval_accuracy", "eval_margin"} <= watched.metrics[0].keys()


def test_a_training_that_gets_no_better_stops_and_publishes_its_best(tmp_path: Path, inputs: dict[str, Any]) -> None:
    asked = spec(max_steps=100, learning_rate=0.1, early_stopping_patience=2, load_best_model_at_end=True)
    whole = FakeJob(tmp_path / "whole", inputs=inputs)

    result = run(asked, whole)

    found = measured(whole)
    best = min(found, key=lambda step: found[step])
    assert result["steps"] == best + 4 < 100
    assert result["loss"] == pytest.approx(found[best], rel=1e-6)
    assert f"the weights of step {best} were the best, and are published" in whole.logs

    # Cut before the second measurement that is no better, it stops at the same step.
    cut = LostJob(tmp_path / "cut", inputs=inputs)
    cut.dies_at = best + 3
    with pytest.raises(KeyboardInterrupt):
        run(asked, cut)
    again = FakeJob(tmp_path / "cut", inputs=inputs)
    assert run(asked, again)["steps"] == best + 4
    assert same(again, whole)

    # And cut when it has stopped, it does not go on.
    (tmp_path / "whole" / "staged").rename(tmp_path / "before")
    once_more = FakeJob(tmp_path / "whole", inputs=inputs)
    assert run(asked, once_more)["steps"] == best + 4
    assert once_more.metrics == []


def test_a_pause_while_measuring_keeps_the_step(tmp_path: Path, inputs: dict[str, Any]) -> None:
    class PausedInMeasuring(FakeJob):
        def progress(self, done: float, total: float, unit: str, **facts: Any) -> None:
            if facts.get("stage") == "measuring":
                self.pausing, self.cancel_after = True, 0
            super().progress(done, total, unit, **facts)

    paused = PausedInMeasuring(tmp_path, inputs=inputs)

    with pytest.raises(Cancelled):
        run(spec(), paused)

    assert list(measured(paused)) == [2]
    assert (tmp_path / "checkpoints" / "checkpoint-2" / "manifest.json").is_file()
