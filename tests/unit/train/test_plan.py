from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.nouns import AnyArtifact
from modelworks.train.plan import check, lora_of
from modelworks.train.spec import TrainSpec
from shelf import adapter_at, conversations, model_at, preferences
from tiny import tiny_adapter, tiny_llama


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "tiny"))
    rows = conversations(tmp_path / "rows", [], [("a", "b")])
    spec = TrainSpec(
        model="tiny", dataset="rows", params={"loss": "all"}, tuning="full", lora_r=8, max_length=257, warmup_steps=1.5
    )

    with pytest.raises(Invalid) as caught:
        check(spec, {"tiny": base, "rows": rows})

    assert [problem.where for problem in caught.value.problems] == [
        "loss",
        "max_length",
        "dataset",
        "lora_r",
        "warmup_steps",
    ]


def test_the_nearest_strategy_is_named(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "tiny"))
    rows = conversations(tmp_path / "rows", [("a", "b")], [])

    with pytest.raises(Invalid, match="no training strategy is called 'stf'; did you mean sft"):
        check(TrainSpec(model="tiny", dataset="rows", strategy="stf", max_length=64), {"tiny": base, "rows": rows})


def test_training_goes_on_from_an_adapter_with_the_shape_that_it_has(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "tiny"))
    adapter = adapter_at(tiny_adapter(tmp_path / "one", base.path), base)
    found: dict[str, AnyArtifact] = {
        "one": adapter,
        adapter.base: base,
        "rows": conversations(tmp_path / "rows", [("a", "b")], []),
    }
    asked = TrainSpec(model="one", dataset="rows")

    check(asked, found)
    # As it is kept with the job, every field named.
    check(TrainSpec.model_validate(asked.model_dump() | lora_of(adapter)), found)
    with pytest.raises(Invalid, match=r"lora_r: one has 2, and goes on with it") as caught:
        check(TrainSpec(model="one", dataset="rows", lora_r=4, lora_target=("v_proj", "q_proj")), found)
    assert len(caught.value.problems) == 1
    with pytest.raises(Invalid, match="tuning: one is an adapter"):
        check(TrainSpec(model="one", dataset="rows", tuning="full"), found)


def test_layers_that_the_model_lacks_are_told_by_its_files(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "tiny"))
    rows = conversations(tmp_path / "rows", [("a", "b")], [])

    with pytest.raises(Invalid, match=r"no layer c_attn \(it has down_proj, gate_proj, k_proj") as caught:
        check(TrainSpec(model="tiny", dataset="rows", lora_target=("c_attn", "q_proj")), {"tiny": base, "rows": rows})

    assert caught.value.problems[0].code == "unsupported_combination"


def test_a_full_training_is_accepted_as_it_is_kept_with_its_job(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "tiny"))
    rows = conversations(tmp_path / "rows", [("a", "b")], [])
    asked = TrainSpec(model="tiny", dataset="rows", tuning="full")

    check(TrainSpec.model_validate(asked.model_dump()), {"tiny": base, "rows": rows})


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, AnyArtifact]:
    return {
        "tiny": model_at(tiny_llama(tmp_path / "tiny")),
        "judge": model_at(tiny_llama(tmp_path / "judge", architectures=["LlamaForSequenceClassification"]), "judge"),
        "rows": conversations(tmp_path / "rows", [("a", "b")], []),
        "pairs": preferences(tmp_path / "pairs", [("a", "b", "c")]),
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"strategy": "dpo"},
            r"rows holds conversations \(format messages\); dpo learns from preferences \(.*formats preference,",
        ),
        (
            {"strategy": "sft", "dataset": "pairs"},
            r"holds preferences .*; sft learns from conversations or plain text \(.*alpaca, .*text, or",
        ),
        ({"strategy": "qlora", "dataset": "pairs"}, "qlora learns from conversations or plain text"),
        ({"strategy": "qlora", "tuning": "full"}, "tuning: qlora does not train every weight"),
        ({"strategy": "rlhf"}, "params.reward_model: rlhf needs a judge of answers, and the conversations of rows"),
        ({"strategy": "rlhf", "params": {"reward_model": "tiny"}}, "tiny gives no rating"),
        (
            {"strategy": "rlhf", "dataset": "pairs", "params": {"num_generations": 3}},
            "3 answers a prompt do not divide the 8 of a step",
        ),
        ({"strategy": "rlhf", "dataset": "pairs", "params": {"max_new_tokens": 64}}, "64 leaves no room for a prompt"),
        ({"strategy": "grpo"}, "params.rewards: nothing says what a good answer is"),
        ({"strategy": "grpo", "params": {"rewards": ["number", "number"]}}, "number is there twice"),
        ({"strategy": "grpo", "tuning": "full", "params": {"rewards": "number", "beta": 0.1}}, "a copy of the model"),
        ({"strategy": "pretrain"}, "pretrain learns from plain text .*choose the strategy .*sft"),
    ],
)
def test_a_strategy_refuses_what_it_cannot_learn_from(
    inputs: dict[str, AnyArtifact], asked: dict[str, Any], said: str
) -> None:
    spec = TrainSpec.model_validate({"model": "tiny", "dataset": "rows", "max_length": 64} | asked)

    with pytest.raises(Invalid, match=said):
        check(spec, inputs)


@pytest.mark.parametrize(
    "asked",
    [
        {"strategy": "qlora"},
        {"strategy": "dpo", "dataset": "pairs"},
        {"strategy": "rlhf", "dataset": "pairs", "params": {"max_new_tokens": 8}},
        {"strategy": "rlhf", "params": {"reward_model": "judge", "max_new_tokens": 8}},
    ],
)
def test_a_strategy_takes_what_it_can_learn_from(inputs: dict[str, AnyArtifact], asked: dict[str, Any]) -> None:
    spec = TrainSpec.model_validate({"model": "tiny", "dataset": "rows", "max_length": 64} | asked)

    check(spec, inputs)

    assert set(spec.models) == {"tiny", *([spec.params["reward_model"]] if "reward_model" in spec.params else [])}


def test_qlora_says_what_to_install(inputs: dict[str, AnyArtifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelworks.train.strategies.qlora.find_spec", lambda _name: None)

    with pytest.raises(Unsupported, match="pip install bitsandbytes"):
        check(TrainSpec(model="tiny", dataset="rows", strategy="qlora", max_length=64), inputs)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"early_stopping_patience": 2}, r"early_stopping_patience: needs measurements to go by \(give eval_steps\)"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: needs measurements"),
        ({"eval_steps": 5}, "eval_steps: rows holds out no row to measure"),
        ({"report_to": ["wandb"]}, r"report_to: wandb is not installed here \(pip install wandb\)"),
        ({"parallel": "fsdp"}, "parallel: fsdp divides the weights among processes, and there is one"),
        ({"parallel": "fsdp", "num_processes": 2, "strategy": "grpo"}, "num_processes: grpo trains in one process"),
        ({"strategy": "rlhf", "num_processes": 2}, "num_processes: rlhf trains in one process"),
    ],
)
def test_what_cannot_be_watched_or_divided_is_refused(
    inputs: dict[str, AnyArtifact], asked: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelworks.train.reporting.find_spec", lambda _name: None)
    spec = TrainSpec.model_validate({"model": "tiny", "dataset": "rows", "max_length": 64} | asked)

    with pytest.raises(Invalid, match=said):
        check(spec, inputs)
