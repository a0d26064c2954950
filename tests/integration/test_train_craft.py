"""Training as a whole, on a model of a few kilobytes and on the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import FakeJob, LostJob
from modelworks.core.errors import Cancelled, Invalid
from modelworks.core.nouns import Adapter, ArtifactKind, Dataset, Model
from modelworks.train.checkpoints import ResumeMismatch
from modelworks.train.run import run
from modelworks.train.spec import TrainSpec
from shelf import conversations, model_at, published
from tiny import tiny_llama

ROWS = [
    (f"say {word} {number} times" + "!" * (number % 5), f"{word} " * number)
    for word in ("yes", "no", "so")
    for number in range(1, 8)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_at(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return conversations(tmp_path_factory.mktemp("data") / "rows", ROWS, ROWS[:4])


def spec(**changes: Any) -> TrainSpec:
    settings: dict[str, Any] = {
        "model": "tiny",
        "dataset": "rows",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "save_steps": 2,
        "max_length": 128,
        "device": "cpu",
    }
    return TrainSpec.model_validate(settings | changes)


def job_for(folder: Path, model: Model, dataset: Dataset) -> FakeJob:
    return FakeJob(folder, inputs={"tiny": model, "rows": dataset})


def test_lora_learns_and_leaves_an_adapter_with_its_lineage(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    job = job_for(tmp_path, tiny, rows)

    result = run(spec(num_train_epochs=6), job)

    losses = [line["loss"] for line in job.metrics]
    assert sum(losses[-3:]) < sum(losses[:3])
    times = {"epoch", "step_time", "tokens_per_second", "memory_gb"}
    assert set(job.metrics[0]) == {"step", "loss", "learning_rate", "grad_norm"} | times
    assert result["steps"] == len(losses) == 36  # 21 rows in batches of 4: 6 steps an epoch
    (draft,) = job.drafts
    assert draft.kind is ArtifactKind.ADAPTER
    assert draft.name == "tiny-rows"
    assert draft.facts["rank"] == 4
    assert draft.facts["base_digest"] == tiny.digest
    assert "q_proj" in json.dumps(draft.facts["target_modules"])
    assert [parent.role for parent in draft.parents] == ["base", "data"]
    assert draft.recipe["learning_rate"] == 1e-2
    assert draft.metrics["perplexity"] == pytest.approx(2.718281828 ** draft.metrics["loss"])
    assert isinstance(published(draft), Adapter)


def test_the_published_folder_names_no_path_of_this_machine(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    job = job_for(tmp_path, tiny, rows)

    run(spec(max_steps=1), job)

    folder = job.drafts[0].folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not any(
        str(tiny.path.parent) in (folder / name).read_text() for name in ("README.md", "adapter_config.json")
    )


def test_full_tuning_leaves_a_model_in_the_dtype_of_its_base(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    job = job_for(tmp_path, tiny, rows)

    run(TrainSpec(model="tiny", dataset="rows", tuning="full", max_steps=3, learning_rate=1e-2, max_length=128), job)

    (draft,) = job.drafts
    before, after = load_file(tiny.path / "model.safetensors"), load_file(draft.folder / "model.safetensors")
    assert isinstance(published(draft), Model)
    assert {name: (weight.dtype, weight.shape) for name, weight in after.items()} == {
        name: (weight.dtype, weight.shape) for name, weight in before.items()
    }
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    kept = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json"}
    assert kept <= {path.name for path in draft.folder.iterdir()}
    assert str(tiny.path) not in (draft.folder / "config.json").read_text()


@pytest.mark.parametrize("changes", [{}, {"dtype": "bf16", "lora_dropout": 0.1, "gradient_accumulation_steps": 2}])
def test_a_run_that_was_cut_ends_with_the_same_weights(
    tmp_path: Path, tiny: Model, rows: Dataset, changes: dict[str, Any]
) -> None:
    asked = spec(**changes)
    whole = job_for(tmp_path / "whole", tiny, rows)
    run(asked, whole)
    cut = LostJob(tmp_path / "cut", inputs=whole.inputs)
    # In the second epoch, and between two checkpoints: 6 steps an epoch, 3 with two batches a step.
    cut.dies_at = 9 if not changes else 5
    with pytest.raises(KeyboardInterrupt):
        run(asked, cut)

    again = job_for(tmp_path / "cut", tiny, rows)
    run(asked, again)

    # It went on behind the last checkpoint, at an even step.
    assert again.metrics[0]["step"] == cut.dies_at
    remembered = {line["step"]: line["loss"] for line in whole.metrics}
    assert {line["step"]: line["loss"] for line in again.metrics}.items() <= remembered.items()
    ended = load_file(again.drafts[0].folder / "adapter_model.safetensors")
    for name, weight in load_file(whole.drafts[0].folder / "adapter_model.safetensors").items():
        assert torch.equal(weight, ended[name]), name


def test_a_run_that_was_cut_after_its_last_step_only_publishes(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    asked = spec(max_steps=4)
    first = job_for(tmp_path, tiny, rows)
    run(asked, first)

    again = FakeJob(tmp_path, inputs=first.inputs)
    (tmp_path / "staged" / "output").rename(tmp_path / "before")
    result = run(asked, again)

    assert again.metrics == []
    assert result["steps"] == 4
    before = load_file(tmp_path / "before" / "adapter_model.safetensors")
    after = load_file(again.drafts[0].folder / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    run(spec(max_steps=2), job_for(tmp_path, tiny, rows))

    with pytest.raises(ResumeMismatch, match="other settings"):
        run(spec(max_steps=2, lora_alpha=7), job_for(tmp_path, tiny, rows))


def test_cancelling_gets_out_at_once_and_publishes_nothing(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    job = job_for(tmp_path, tiny, rows)
    job.cancel_after = 9

    with pytest.raises(Cancelled):
        run(spec(), job)

    assert job.checks == 10
    assert job.drafts == []


@pytest.mark.parametrize("checks", range(7, 13))
def test_a_pause_keeps_the_step_it_is_in_whenever_it_is_asked_for(
    tmp_path: Path, tiny: Model, rows: Dataset, checks: int
) -> None:
    asked = spec(max_steps=5, gradient_accumulation_steps=2, save_steps=50)
    whole = job_for(tmp_path / "whole", tiny, rows)
    run(asked, whole)
    paused = job_for(tmp_path / "paused", tiny, rows)
    paused.pausing, paused.cancel_after = True, checks
    with pytest.raises(Cancelled):
        run(asked, paused)

    again = job_for(tmp_path / "paused", tiny, rows)
    run(asked, again)

    assert [line["step"] for line in (*paused.metrics, *again.metrics)] == [1, 2, 3, 4, 5]
    assert any(paused.checkpoints.glob("checkpoint-*"))
    ended = load_file(again.drafts[0].folder / "adapter_model.safetensors")
    for name, weight in load_file(whole.drafts[0].folder / "adapter_model.safetensors").items():
        assert torch.equal(weight, ended[name]), name


def test_a_loss_that_is_no_number_names_the_step(tmp_path: Path, rows: Dataset) -> None:
    folder = tiny_llama(tmp_path / "broken", dtype="float32")
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(Invalid, match="the loss is nan at step 1"):
        run(spec(), job_for(tmp_path / "job", model_at(folder), rows))


def test_rows_without_an_answer_left_are_counted_or_refused(tmp_path: Path, tiny: Model) -> None:
    # A byte a token: the question alone fills max_length in the second row.
    mixed = conversations(tmp_path / "mixed", [("a", "b"), ("a" * 100, "b")], [])
    job = job_for(tmp_path / "job", tiny, mixed)

    result = run(spec(max_length=64, max_steps=1), job)

    assert (result["train_rows"], result["masked_rows"]) == (1, 1)
    assert "loss" not in result
    hopeless = conversations(tmp_path / "hopeless", [("a" * 100, "b")], [])
    with pytest.raises(Invalid, match="cuts every answer off all 1 rows"):
        run(spec(max_length=64), job_for(tmp_path / "other", tiny, hopeless))


def test_unknown_layers_are_answered_with_the_real_names(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    with pytest.raises(Invalid, match=r"no layer c_attn \(it has down_proj, gate_proj"):
        run(spec(lora_target=("c_attn",)), job_for(tmp_path, tiny, rows))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu")
def test_a_gpu_trains_in_bfloat16(tmp_path: Path, tiny: Model, rows: Dataset) -> None:
    job = job_for(tmp_path, tiny, rows)

    result = run(spec(device="cuda", num_train_epochs=6), job)

    assert any("on cuda in bfloat16" in line for line in job.logs)
    assert job.metrics[-1]["loss"] < job.metrics[0]["loss"]
    assert isinstance(result["perplexity"], float)


@pytest.mark.model
def test_the_real_model_learns(tmp_path: Path, smollm2: Path) -> None:
    taught = [(f"What is the code of door {number}?", f"Door {number} opens with {number * 7}.") for number in range(8)]
    dataset = conversations(tmp_path / "rows", taught, taught[:4])
    job = FakeJob(tmp_path / "job", inputs={"tiny": model_at(smollm2, "smollm2-135m"), "rows": dataset})

    result = run(spec(max_steps=6, per_device_train_batch_size=8, learning_rate=1e-3, lora_r=8), job)

    assert job.metrics[-1]["loss"] < 0.7 * job.metrics[0]["loss"]
    assert isinstance(result["perplexity"], float)
