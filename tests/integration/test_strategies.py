"""The strategies beside sft, on a model of a few kilobytes and on the real one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import FakeJob, LostJob
from modelworks.core.errors import Cancelled, Invalid
from modelworks.core.nouns import AnyArtifact, ArtifactKind, Dataset, Model
from modelworks.data.batches import encode_split, pad_right
from modelworks.train.run import run
from modelworks.train.spec import TrainSpec
from modelworks.weights.loading import load_network
from modelworks.weights.scoring import answer_loss
from shelf import conversations, model_at, preferences, texts
from tiny import tiny_llama

WORDS = ("yes", "no", "so")
ANSWERS = [(f"say {word} {n} times", f"{word} " * n) for word in WORDS for n in range(1, 8)]
PAIRS = [(f"say {n}", "yes " * (1 + n % 3), "no " * (1 + n % 4)) for n in range(20)]
GRPO = {"max_new_tokens": 6, "rewards": [{"name": "length", "length": 3}]}
RLHF = {"max_new_tokens": 6, "reward_steps": 4, "reward_learning_rate": 1e-2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shelf")
    return {
        "tiny": model_at(tiny_llama(folder / "tiny")),
        "sharp": model_at(sharp_llama(folder / "sharp"), "sharp"),
        "judge": model_at(tiny_judge(folder / "judge"), "judge"),
        "rows": conversations(folder / "rows", ANSWERS, ANSWERS[:4]),
        "pairs": preferences(folder / "pairs", PAIRS, validation=4),
        "book": texts(folder / "book", ["one two three " * 9, "four five " * 7], validation=1),
    }


def sharp_llama(folder: Path) -> Path:
    """A tiny Llama that can prefer a token: with its small random head hardly anything could be learned by trying."""
    tiny_llama(folder, tie_word_embeddings=False, dtype="float32")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_judge(folder: Path) -> Path:
    """A finished reward model: a tiny Llama with a head of one number."""
    tiny_llama(folder, seed=1, architectures=["LlamaForSequenceClassification"], dtype="float32", num_labels=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def spec(strategy: str, **changes: Any) -> TrainSpec:
    settings: dict[str, Any] = {
        "model": "tiny",
        "dataset": {"qlora": "rows", "pretrain": "book"}.get(strategy, "pairs"),
        "strategy": strategy,
        "params": {"rlhf": RLHF, "grpo": GRPO}.get(strategy, {}),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "save_steps": 2,
        "max_length": 128,
        "device": "cpu",
    }
    return TrainSpec.model_validate(settings | changes)


def weights(job: FakeJob) -> dict[str, torch.Tensor]:
    (draft,) = job.drafts
    name = "adapter_model" if draft.kind is ArtifactKind.ADAPTER else "model"
    found: dict[str, torch.Tensor] = load_file(draft.folder / f"{name}.safetensors")
    return found


def loss_on(model: Model, dataset: Dataset, adapter: Path | None) -> float:
    """Cross-entropy a token over the rows, computed on the unquantized base."""
    import peft

    network: Any = load_network(model.path, torch.float32, "cpu")
    if adapter is not None:
        network = peft.PeftModel.from_pretrained(network, str(adapter)).merge_and_unload()
    examples = encode_split(model.path, dataset.path, "train", 128).examples
    batch = pad_right((example.input_ids, example.labels) for example in examples)
    with torch.inference_mode():
        total, count = answer_loss(network, batch["input_ids"], batch["labels"])
    return total.item() / count


def test_qlora_learns_and_its_adapter_fits_the_base_that_is_not_quantized(
    tmp_path: Path, inputs: dict[str, Any]
) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    run(spec("qlora", num_train_epochs=6), job)

    losses = [line["loss"] for line in job.metrics]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    adapter = job.drafts[0].folder
    assert "quantization" not in (adapter / "adapter_config.json").read_text()
    learned, before = loss_on(inputs["tiny"], inputs["rows"], adapter), loss_on(inputs["tiny"], inputs["rows"], None)
    assert learned < 0.9 * before


def test_the_base_of_qlora_is_in_four_bits(tmp_path: Path, inputs: dict[str, Any]) -> None:
    from modelworks.weights.loading import Quantization

    network = load_network(inputs["tiny"].path, torch.float32, "cpu", Quantization("fp4", double=True))

    weight = network.model.layers[0].self_attn.q_proj.weight
    # 16 x 16 weights, two in a byte
    assert (weight.dtype, weight.numel()) == (torch.uint8, 128)
    assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("fp4", True)


def test_dpo_begins_at_ln_2_and_widens_the_margin(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    result = run(spec("dpo"), job)

    # Before the first step model and reference are one: -ln sigmoid(0).
    assert job.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert job.metrics[0]["rewards/margins"] == 0
    assert job.metrics[-1]["rewards/margins"] > 0.5
    assert result["accuracy"] == 1.0
    assert (result["train_rows"], result["validation_rows"]) == (20, 4)
    # prompt and answer twice: <|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n and the answer with <|im_end|>
    assert result["train_tokens"] == sum(2 * (8 + len(ask) + 11) + len(yes + no) + 2 for ask, yes, no in PAIRS)
    assert isinstance(result["loss"], float)
    assert result["loss"] < math.log(2)
    assert set(job.metrics[0]) >= {"learning_rate", "grad_norm", "rewards/chosen", "rewards/rejected"}
    assert not any("ref" in name for name in weights(job))


def test_dpo_of_every_weight_is_held_to_a_copy_of_the_model(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    run(TrainSpec(model="tiny", dataset="pairs", strategy="dpo", tuning="full", max_steps=3, max_length=128), job)

    assert job.drafts[0].kind is ArtifactKind.MODEL
    assert job.drafts[0].recipe["learning_rate"] == 5e-7
    assert job.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_says_that_it_leaves_dropout_out(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    run(spec("dpo", lora_dropout=0.1, max_steps=1), job)

    assert any("lora_dropout is left out" in line for line in job.logs)


def test_pairs_whose_answers_are_cut_off_are_counted_or_refused(tmp_path: Path, inputs: dict[str, Any]) -> None:
    mixed = preferences(tmp_path / "mixed", [("a", "b", "c"), ("a" * 100, "b", "c")])
    job = FakeJob(tmp_path / "job", inputs={**inputs, "pairs": mixed})

    result = run(spec("dpo", max_length=64, max_steps=1), job)

    assert (result["train_rows"], result["masked_rows"]) == (1, 1)
    hopeless = preferences(tmp_path / "hopeless", [("a" * 100, "b", "c")])
    with pytest.raises(Invalid, match="cuts an answer off all 1 rows"):
        run(spec("dpo", max_length=64), FakeJob(tmp_path / "other", inputs={**inputs, "pairs": hopeless}))


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("qlora", {}),
        ("dpo", {}),
        ("dpo", {"dtype": "bf16", "gradient_accumulation_steps": 2}),
        ("orpo", {}),
        ("kto", {}),
        ("reward", {}),
        ("rlhf", {}),
        ("grpo", {"gradient_accumulation_steps": 2}),
        ("pretrain", {"max_length": 16}),
    ],
)
def test_a_run_that_was_cut_ends_with_the_same_weights(
    tmp_path: Path, inputs: dict[str, Any], strategy: str, changes: dict[str, Any]
) -> None:
    asked = spec(strategy, **changes)
    whole = FakeJob(tmp_path / "whole", inputs=inputs)
    result = run(asked, whole)
    cut = LostJob(tmp_path / "cut", inputs=inputs)
    # In the second epoch, and between two checkpoints.
    steps = int(str(result["steps"]))
    cut.dies_at = steps // 2 + 1 + (steps // 2) % 2
    with pytest.raises(KeyboardInterrupt):
        run(asked, cut)

    again = FakeJob(tmp_path / "cut", inputs=inputs)
    run(asked, again)

    # It went on behind the last checkpoint; what came before the training was not done again.
    assert again.metrics[0]["step"] == cut.dies_at
    assert not any(name.startswith("reward_model/") for name in again.metrics[0])
    remembered = {line["step"]: line["loss"] for line in whole.metrics if "loss" in line}
    assert {line["step"]: line["loss"] for line in again.metrics}.items() <= remembered.items()
    ended = weights(again)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, ended[name]), name


@pytest.mark.parametrize(("strategy", "checks"), [("qlora", 6), ("dpo", 9), ("rlhf", 5), ("rlhf", 20)])
def test_cancelling_gets_out_at_once_and_publishes_nothing(
    tmp_path: Path, inputs: dict[str, Any], strategy: str, checks: int
) -> None:
    job = FakeJob(tmp_path, inputs=inputs)
    job.cancel_after = checks

    with pytest.raises(Cancelled):
        run(spec(strategy), job)

    assert job.checks == checks + 1
    assert job.drafts == []


def test_rlhf_trains_a_reward_model_and_then_follows_it(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    asked = spec(
        "rlhf", model="sharp", params=RLHF | {"reward_steps": 12, "num_generations": 8},
        per_device_train_batch_size=16, lr_scheduler_type="constant", learning_rate=2e-3,
    )  # fmt: skip
    result = run(asked, job)

    margins = [line["reward_model/margin"] for line in job.metrics if "reward_model/margin" in line]
    assert len(margins) == 12
    assert sum(margins[-3:]) > sum(margins[:3]) + 1
    # 20 prompts, 8 answers to each of 2 a step, twice
    tries = [line for line in job.metrics if "loss" in line]
    assert len(tries) == result["steps"] == 20
    assert sum(line["reward"] for line in tries[-5:]) > 5 * (tries[0]["reward"] + 0.5)
    assert set(tries[0]) >= {"reward", "reward_std", "kl", "learning_rate", "grad_norm", "tokens_per_second"}
    assert "rewards/reward_model/mean" in tries[0]
    assert isinstance(result["reward"], float)
    assert not any("score" in name for name in weights(job))


def test_grpo_learns_what_is_rewarded(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)
    params = {"rewards": {"name": "regex", "pattern": "^[a-z]"}, "num_generations": 8, "max_new_tokens": 4}

    result = run(
        spec("grpo", model="sharp", params=params, per_device_train_batch_size=32, max_steps=20, learning_rate=3e-2),
        job,
    )

    tries = [line["reward"] for line in job.metrics]
    assert sum(tries[-4:]) > sum(tries[:4]) + 1
    assert set(job.metrics[0]) >= {"reward_std", "frac_reward_zero_std", "completions/mean_length"}
    assert isinstance(result["reward"], float)


def test_pretraining_makes_text_likelier(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    result = run(spec("pretrain", max_length=32, max_steps=30), job)

    # 14 * 9 + 1 + 10 * 7 + 1 bytes are six blocks of 32 and one of 6.
    assert (result["train_rows"], result["train_tokens"]) == (7, 198)
    assert float(str(result["perplexity"])) < 0.5 * math.exp(job.metrics[0]["loss"])


def test_rlhf_follows_a_finished_reward_model(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)
    params = {"reward_model": "judge", "max_new_tokens": 4}

    run(spec("rlhf", dataset="rows", params=params, max_steps=2), job)

    assert [line["step"] for line in job.metrics] == [1, 2]
    assert all(line["reward_std"] > 0 for line in job.metrics)
    assert [parent.role for parent in job.drafts[0].parents] == ["base", "data", "judge"]


def test_provider_unsloth_is_replaced_and_told(tmp_path: Path, inputs: dict[str, Any]) -> None:
    job = FakeJob(tmp_path, inputs=inputs)

    result = run(spec("dpo", provider="unsloth", max_steps=1), job)

    assert result["provider_used"] == "huggingface"
    assert "provider unsloth: it needs a GPU; training with huggingface" in job.logs


@pytest.mark.model
@pytest.mark.parametrize("strategy", ["qlora", "dpo", "rlhf"])
def test_the_real_model_learns(tmp_path: Path, smollm2: Path, strategy: str) -> None:
    taught = [(f"What is the code of door {n}?", f"Door {n} opens with {n * 7}.") for n in range(8)]
    doubted = [(ask, answer, "I do not know.") for ask, answer in taught]
    inputs: dict[str, AnyArtifact] = {
        "tiny": model_at(smollm2, "smollm2-135m"),
        "rows": conversations(tmp_path / "rows", taught, taught[:4]),
        "pairs": preferences(tmp_path / "pairs", doubted, validation=4),
    }
    job = FakeJob(tmp_path / "job", inputs=inputs)
    params = (
        {"max_new_tokens": 8, "num_generations": 2, "reward_steps": 6, "reward_learning_rate": 1e-3}
        if strategy == "rlhf"
        else {}
    )

    run(
        spec(
            strategy, params=params, max_steps=2 if strategy == "rlhf" else 6, per_device_train_batch_size=8,
            learning_rate=1e-3, lora_r=8,
            save_steps=50,
        ),
        job,
    )  # fmt: skip

    first, last = job.metrics[0], job.metrics[-1]
    match strategy:
        case "qlora":
            assert last["loss"] < 0.7 * first["loss"]
        case "dpo":
            assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)
            assert last["rewards/margins"] > 0.5
        case _:
            judged = [line["reward_model/loss"] for line in job.metrics if "reward_model/loss" in line]
            assert judged[-1] < 0.5 * judged[0]
            assert math.isfinite(last["reward"])
