from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import as_model
from fakes import FakeJob
from modelworks.core.errors import Invalid
from modelworks.core.nouns import Model
from modelworks.merge.plan import make_plan
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from modelworks.merge.spotcheck import spot_check
from modelworks.weights.reader import Checkpoint
from tiny import tiny_llama

NORM = "model.norm.weight"


def changed(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Model]:
    """A base, two fine-tunes of it, and a model of other seeds."""
    generator = torch.Generator().manual_seed(9)
    for name in ("base", "near", "nearer"):
        tiny_llama(tmp_path / name)
    for name in ("near", "nearer"):
        changed(tmp_path / name, lambda _, tensor: tensor + 0.01 * torch.randn(tensor.shape, generator=generator))
    tiny_llama(tmp_path / "stranger", 5)
    return {name: as_model(tmp_path / name, name) for name in ("base", "near", "nearer", "stranger")}


def told(inputs: dict[str, Model], tmp_path: Path, strict: bool = False, **spec: Any) -> list[str]:
    plan = make_plan(MergeSpec.model_validate({"base": "base", "models": ["near", "nearer"], **spec}), inputs)
    return spot_check(plan, FakeJob(tmp_path), strict)


def test_fine_tunes_of_the_base_are_beyond_doubt(inputs: dict[str, Model], tmp_path: Path) -> None:
    assert told(inputs, tmp_path) == []


def test_a_model_of_another_origin_is_told(inputs: dict[str, Model], tmp_path: Path) -> None:
    (doubt,) = told(inputs, tmp_path, models=["near", "stranger"])

    assert doubt.startswith("stranger seems not to be made from base: the cosine of their weights is ")
    assert "their difference is 1.38 times" in doubt  # of one size at right angles: near the root of 2


def test_without_a_base_models_are_held_against_the_first(inputs: dict[str, Model], tmp_path: Path) -> None:
    (doubt,) = told(inputs, tmp_path, method="average", base=None, models=["near", "nearer", "stranger"])

    assert doubt.startswith("stranger seems not to be made from near")


def test_strict_makes_it_an_error(inputs: dict[str, Model], tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        told(inputs, tmp_path, strict=True, models=["stranger"])

    assert [problem.code for problem in caught.value.problems] == ["not_derived"]


def test_the_same_model_under_two_names_is_told(inputs: dict[str, Model], tmp_path: Path) -> None:
    twin = as_model(inputs["near"].path, "twin")

    assert told({**inputs, "twin": twin}, tmp_path, models=["near", "twin"]) == [
        "twin has the weights of near wherever they were looked at; is it the right one?"
    ]


def test_the_base_as_a_model_is_told_of_its_copy(inputs: dict[str, Model], tmp_path: Path) -> None:
    copy = as_model(tiny_llama(tmp_path / "copy"), "copy")

    assert [doubt.split(";")[0] for doubt in told({**inputs, "copy": copy}, tmp_path, models=["near", "copy"])] == [
        "copy has the weights of base wherever they were looked at"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_in_every_model(
    inputs: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == NORM:
            tensor.view(-1)[3] = value
        return tensor

    for name in ("near", "nearer"):
        changed(inputs[name].path, spoil)
    read_into, elements = Checkpoint.read_into, []

    def count(self: Checkpoint, name: str, start: int, view: memoryview) -> None:
        read_into(self, name, start, view)
        elements.append(len(view) * self.tensors[name].elements // self.tensors[name].size_bytes)

    monkeypatch.setattr(Checkpoint, "read_into", count)
    started = time.perf_counter()

    with pytest.raises(Invalid) as caught:
        told(inputs, tmp_path)

    assert time.perf_counter() - started < 1
    assert [(problem.where, problem.code) for problem in caught.value.problems] == [
        ("near", "not_finite"), ("nearer", "not_finite"),
    ]  # fmt: skip
    assert f"{NORM} is {value} at element 3" in str(caught.value)
    assert max(elements) <= 259 * 16


def test_a_job_tells_its_doubts(inputs: dict[str, Model], tmp_path: Path) -> None:
    job = FakeJob(tmp_path / "job", dict(inputs))

    run(MergeSpec(base="base", models=("stranger",)), job)

    assert "stranger seems not to be made from base" in job.logs[0]
