"""Evaluation as a whole, on a model of a few kilobytes and on the real one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fakes import FakeJob
from modelworks.core.errors import Cancelled
from modelworks.core.nouns import Adapter, AnyArtifact, Model
from modelworks.data.batches import encode_split
from modelworks.evaluate.run import run
from modelworks.evaluate.spec import EvaluateSpec
from shelf import adapter_at, conversations, model_at
from tiny import tiny_adapter, tiny_llama

ROWS = [
    (f"say {word} {number} times" + "!" * (number % 5), f"{word} " * number)
    for word in ("yes", "no")
    for number in range(1, 8)
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnyArtifact]:
    root = tmp_path_factory.mktemp("shelf")
    base = model_at(tiny_llama(root / "tiny"))
    one, other = (
        adapter_at(tiny_adapter(root / name, base.path, seed), base) for seed, name in enumerate(("one", "other"))
    )
    return {"tiny": base, base.id: base, "one": one, "other": other, "rows": conversations(root / "rows", [], ROWS)}


def spec(**changes: Any) -> EvaluateSpec:
    settings = {"models": ("tiny",), "datasets": ("rows",), "batch_size": 4, "max_new_tokens": 6, "device": "cpu"}
    return EvaluateSpec.model_validate(settings | changes)


def plain_loss(base: Model, adapter: Adapter | None, dataset: Path) -> float:
    """Row by row, with the library's own head, no batches and no padding."""
    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, str(adapter.path))
    total = tokens = 0.0
    for example in encode_split(base.path, dataset, "validation", 2048).examples:
        labels = torch.tensor([example.labels])
        count = int((labels != -100).sum())
        with torch.no_grad():
            total += network(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.item() * count
        tokens += count
    return total / tokens


def test_the_table_has_a_row_for_every_model_and_dataset_in_the_order_asked(
    tmp_path: Path, shelf: dict[str, AnyArtifact]
) -> None:
    job = FakeJob(tmp_path, inputs=shelf)

    result: dict[str, Any] = run(spec(models=("one", "tiny", "other"), dtype="fp32"), job)

    assert result["columns"] == ["loss", "perplexity", "exact_match"]
    assert [(row["model"], row["dataset"]) for row in result["rows"]] == [
        ("one", "rows"),
        ("tiny", "rows"),
        ("other", "rows"),
    ]
    base, one, other = shelf["tiny"], shelf["one"], shelf["other"]
    assert isinstance(base, Model)
    assert isinstance(one, Adapter)
    assert isinstance(other, Adapter)
    for row, adapter in zip(result["rows"], (one, None, other), strict=True):
        # Each adapter alone, and the base untouched by the one measured before it.
        assert row["loss"] == pytest.approx(plain_loss(base, adapter, shelf["rows"].path), abs=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert 0 <= row["exact_match"] <= 1
    assert [sample["model"] for sample in result["samples"]] == ["one"] * 3 + ["tiny"] * 3 + ["other"] * 3
    assert job.progressed[-1][0] == job.progressed[-1][1] == 6


def test_answers_do_not_depend_on_what_else_is_in_the_batch(tmp_path: Path, shelf: dict[str, AnyArtifact]) -> None:
    together: Any = run(spec(samples=14, dtype="fp32", metrics=("exact_match",)), FakeJob(tmp_path, inputs=shelf))
    alone: Any = run(
        spec(samples=14, dtype="fp32", metrics=("exact_match",), batch_size=1), FakeJob(tmp_path, inputs=shelf)
    )

    assert len(together["samples"]) == 14
    for one, other in zip(together["samples"], alone["samples"], strict=True):
        # In a batch the longest expected answer sets how far is generated.
        shorter = min(len(one["answer"]), len(other["answer"]))
        assert one["answer"][:shorter] == other["answer"][:shorter]


def test_the_share_of_right_answers_is_counted(tmp_path: Path, shelf: dict[str, AnyArtifact]) -> None:
    asked = spec(metrics=("exact_match",), max_new_tokens=3, samples=100, dtype="fp32")
    given: Any = run(asked, FakeJob(tmp_path, inputs=shelf))
    # Half the rows expect what the model says anyhow, with other white space around it.
    rows = [
        (sample["prompt"], f" {sample['answer']}\n" if number % 2 else "something else")
        for number, sample in enumerate(given["samples"])
    ]
    inputs = {**shelf, "rows": conversations(tmp_path / "rows", [], rows)}

    result: Any = run(asked, FakeJob(tmp_path, inputs=inputs))

    assert result["rows"] == [{"model": "tiny", "dataset": "rows", "exact_match": 0.5}]
    assert [sample["right"] for sample in result["samples"]] == [False, True] * 7


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "mute", tie_word_embeddings=False, dtype="float32"))
    tensors = load_file(base.path / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, base.path / "model.safetensors", metadata={"format": "pt"})
    dataset = conversations(tmp_path / "rows", [], ROWS)

    result: Any = run(
        spec(models=("mute",), metrics=("perplexity",)), FakeJob(tmp_path, inputs={"mute": base, "rows": dataset})
    )

    assert result["rows"][0]["perplexity"] == pytest.approx(base.vocab_size, rel=1e-4)


def test_cancelling_gets_out_between_two_tokens(tmp_path: Path, shelf: dict[str, AnyArtifact]) -> None:
    job = FakeJob(tmp_path, inputs=shelf, cancel_after=3)

    with pytest.raises(Cancelled):
        run(spec(metrics=("exact_match",)), job)

    assert job.progressed == []


@pytest.mark.model
def test_the_real_model_finds_english_likelier_than_noise(tmp_path: Path, smollm2: Path) -> None:
    base = model_at(smollm2, "smollm2")
    sense = conversations(
        tmp_path / "sense", [], [("What is the capital of France?", "The capital of France is Paris.")]
    )
    noise = conversations(tmp_path / "noise", [], [("What is the capital of France?", "Zebra if the blue seven.")])
    job = FakeJob(tmp_path, inputs={"smollm2": base, "sense": sense, "noise": noise})

    result: Any = run(spec(models=("smollm2",), datasets=("sense", "noise"), max_new_tokens=16), job)

    french, zebra = result["rows"]
    assert french["perplexity"] < 3
    assert zebra["perplexity"] > 50
    assert french["exact_match"] == 1.0
