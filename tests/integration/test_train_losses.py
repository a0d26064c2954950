"""What a training meets and must not lose anything by: too little memory, a full disk, rows that are no numbers."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import FakeJob
from modelworks.core.errors import Cancelled, DiskFull, OutOfMemory
from modelworks.core.nouns import Adapter, Dataset, Model
from modelworks.train import network, supervised
from modelworks.train.run import run
from modelworks.train.spec import TrainSpec
from modelworks.train.trainer import NonFiniteLoss
from modelworks.weights import scoring
from shelf import conversations, model_at, published
from tiny import tiny_llama

ROWS = [(f"say {number}" + "!" * (number % 5), "yes " * (number % 7 + 1)) for number in range(1, 13)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_at(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return conversations(tmp_path_factory.mktemp("data") / "rows", ROWS, ROWS[:2])


@pytest.fixture
def job(tmp_path: Path, tiny: Model, rows: Dataset) -> Callable[[str], FakeJob]:
    return lambda name: FakeJob(tmp_path / name, inputs={"tiny": tiny, "rows": rows})


def spec(**changes: Any) -> TrainSpec:
    settings: dict[str, Any] = {
        "model": "tiny",
        "dataset": "rows",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "save_steps": 2,
        "max_length": 96,
        "device": "cpu",
    }
    return TrainSpec.model_validate(settings | changes)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return weights


def with_memory_for(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network refuse more than so many tokens at once."""
    build = network.build_network

    def refuse(_module: Any, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].numel() > tokens:
            raise torch.OutOfMemoryError(f"out of memory: {inputs[0].numel()} tokens")

    def smaller(*arguments: Any) -> Any:
        built = build(*arguments)
        built.get_input_embeddings().register_forward_pre_hook(refuse)
        return built

    monkeypatch.setattr(supervised, "build_network", smaller)


def test_where_memory_runs_out_the_step_is_computed_again_in_smaller_pieces(
    job: Callable[[str], FakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = job("plenty")
    run(spec(), plenty)
    with_memory_for(100, monkeypatch)
    little = job("little")

    run(spec(), little)

    assert any("out of memory at step 1: micro-batch halved to" in line for line in little.logs)
    assert [line["step"] for line in little.metrics] == [1, 2, 3, 4]
    for one, other in zip(plenty.metrics, little.metrics, strict=True):
        # The batches before the one that failed are counted once.
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    ended = adapter(little.drafts[0].folder)
    for name, weight in adapter(plenty.drafts[0].folder).items():
        assert torch.allclose(weight, ended[name], atol=1e-4), name
    known = json.loads((little.checkpoints / "memory.json").read_text())
    assert known["tokens"] <= 200
    assert not known["checkpointing"]


def test_what_does_not_fit_by_the_row_ends_with_a_remedy(
    job: Callable[[str], FakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory_for(8, monkeypatch)
    hopeless = job("hopeless")

    with pytest.raises(OutOfMemory, match=r"step 1 takes more memory than there is.*lower max_length \(now 96\)"):
        run(spec(), hopeless)

    assert any("gradient_checkpointing turned on" in line for line in hopeless.logs)


def test_a_run_that_the_kernel_ended_for_its_memory_is_followed_by_one_that_takes_less(
    job: Callable[[str], FakeJob],
) -> None:
    killed = job("killed")
    known = {"tokens": 800, "checkpointing": False, "open": True, "peak_bytes": 1 << 60, "kernel_kills": 0}
    (killed.checkpoints / "memory.json").write_text(json.dumps(known))

    run(spec(max_steps=1), killed)

    assert any("ended for its memory; micro-batch halved to 400 tokens" in line for line in killed.logs)


def test_on_a_full_disk_the_oldest_checkpoint_makes_room_then_the_job_is_paused_and_goes_on(
    job: Callable[[str], FakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job("whole")
    run(spec(max_steps=6), whole)
    crowded = job("crowded")
    import transformers

    save, full = transformers.Trainer._save_optimizer_and_scheduler, {4: 1, 6: 2}

    def failing(self: Any, folder: str) -> None:
        if full.get(self.state.global_step):
            full[self.state.global_step] -= 1
            # A real one: the file system takes no more than so many bytes of a file.
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            try:
                save(self, folder)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        save(self, folder)

    monkeypatch.setattr(transformers.Trainer, "_save_optimizer_and_scheduler", failing)

    with pytest.raises(DiskFull, match=r"bytes needed, [\d,]+ bytes free in .*paused at its last checkpoint") as caught:
        run(spec(max_steps=6), crowded)

    assert caught.value.code == "disk_full"
    # That of step 2 made room for that of step 4; nothing could for that of step 6.
    assert [path.name for path in crowded.checkpoints.glob("checkpoint-*")] == ["checkpoint-4"]
    again = job("crowded")
    run(spec(max_steps=6), again)
    assert [line["step"] for line in again.metrics] == [5, 6]
    ended = adapter(again.drafts[0].folder)
    assert all(torch.equal(weight, ended[name]) for name, weight in adapter(whole.drafts[0].folder).items())


def test_a_loss_that_is_no_number_names_step_and_rows_and_leaves_the_checkpoint(
    job: Callable[[str], FakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = scoring.answer_loss, []

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        total, count = score(*arguments)
        return (total * float("nan") if len(calls) > 4 else total), count

    monkeypatch.setattr(supervised, "answer_loss", broken)
    asked = job("broken")

    with pytest.raises(
        NonFiniteLoss, match=r"loss is nan at step 3, in rows \d+, \d+, \d+, \d+ of .*checkpoint of step 2 is kept"
    ):
        run(spec(), asked)

    assert (asked.checkpoints / "checkpoint-2" / "manifest.json").exists()


@pytest.mark.parametrize("checks", [14, 17])
def test_a_pause_inside_a_step_keeps_the_last_whole_one_as_an_adapter(
    job: Callable[[str], FakeJob], tiny: Model, checks: int
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    asked = spec(lora_dropout=0.1, save_steps=50)
    whole, paused = job("whole"), job("paused")
    run(asked, whole)
    paused.pausing, paused.cancel_after = True, checks
    with pytest.raises(Cancelled):
        run(asked, paused)
    (checkpoint,) = paused.checkpoints.glob("checkpoint-*")

    base = AutoModelForCausalLM.from_pretrained(tiny.path)
    assert peft.PeftModel.from_pretrained(base, checkpoint).peft_config["default"].r == 4
    again = job("paused")
    run(asked, again)

    assert [line["step"] for line in (*paused.metrics, *again.metrics)] == [1, 2, 3, 4]
    ended = adapter(again.drafts[0].folder)
    assert all(torch.equal(weight, ended[name]) for name, weight in adapter(whole.drafts[0].folder).items())


def test_a_cancelled_run_leaves_its_adapter_and_one_of_every_weight_nothing(job: Callable[[str], FakeJob]) -> None:
    cancelled, full = job("cancelled"), job("full")
    cancelled.cancel_after = full.cancel_after = 17

    with pytest.raises(Cancelled):
        run(spec(save_steps=50), cancelled)
    with pytest.raises(Cancelled):
        run(TrainSpec(model="tiny", dataset="rows", tuning="full", max_steps=9, max_length=96, save_steps=1), full)

    (kept,) = cancelled.checkpoints.glob("checkpoint-*/adapter_model.safetensors")
    assert f"cancelled after step {kept.parent.name.removeprefix('checkpoint-')}" in cancelled.logs[-1]
    assert not list(full.checkpoints.glob("checkpoint-*"))


def test_a_training_goes_on_from_an_adapter(job: Callable[[str], FakeJob], tiny: Model, rows: Dataset) -> None:
    first = job("first")
    run(spec(max_steps=6), first)
    made = published(first.drafts[0])
    assert isinstance(made, Adapter)
    second = job("second")
    second.inputs = {"mine": made, made.base: tiny, "rows": rows}

    run(spec(model="mine", max_steps=2), second)

    assert second.metrics[0]["loss"] < 0.9 * first.metrics[0]["loss"]
    (draft,) = second.drafts
    assert (draft.facts["rank"], draft.facts["base"]) == (4, tiny.id)
    assert [(parent.role, parent.name) for parent in draft.parents] == [
        ("base", "tiny"),
        ("adapter", made.name),
        ("data", "rows"),
    ]
