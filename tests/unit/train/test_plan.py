from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.errors import Invalid, Unsupported
from modelworks.train.plan import check
from modelworks.train.spec import TrainSpec
from shelf import adapter_at, conversations, model_at
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


def test_training_on_an_adapter_is_refused(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "tiny"))
    adapter = adapter_at(tiny_adapter(tmp_path / "one", base.path), base)
    rows = conversations(tmp_path / "rows", [("a", "b")], [])

    with pytest.raises(Unsupported, match="one is an adapter"):
        check(TrainSpec(model="one", dataset="rows"), {"one": adapter, "rows": rows})
