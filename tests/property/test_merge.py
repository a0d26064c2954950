"""Laws of merging, on models of a few kilobytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import as_adapter, as_model
from fakes import FakeJob
from modelworks.core.hashing import digest_of, list_files
from modelworks.core.nouns import AnyArtifact
from modelworks.merge.method import methods
from modelworks.merge.methods import average, task_arithmetic
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from modelworks.weights.reader import Checkpoint
from pieces import piece_of
from tiny import tiny_adapter, tiny_llama

Merge = Callable[..., Path]


@pytest.fixture(scope="module")
def merge(tmp_path_factory: pytest.TempPathFactory) -> Merge:
    root = tmp_path_factory.mktemp("models")
    base = as_model(tiny_llama(root / "base", 0, tie_word_embeddings=False), "base")
    inputs: dict[str, AnyArtifact] = {
        "base": base,
        "full": as_model(tiny_llama(root / "full", 1, tie_word_embeddings=False), "full"),
        "same": as_model(shutil.copytree(root / "full", root / "same"), "same"),
        "lora": as_adapter(tiny_adapter(root / "lora", base.path, targets=("embed_tokens", "up_proj")), "lora", base),
    }
    made = iter(range(1_000_000))

    def merge_them(chunk_elements: int = 1 << 20, **spec: object) -> Path:
        job = FakeJob(root / f"job-{next(made)}", dict(inputs))
        run(MergeSpec.model_validate({"base": "base", **spec}), job, chunk_elements)
        return job.drafts[0].folder

    return merge_them


def tensors(folder: Path) -> dict[str, list[float]]:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.read(name).flatten().tolist() for name in checkpoint.tensors}


# Every method there is, and what mask_merging can do besides.
VARIANTS: list[dict[str, object]] = [
    *[dict[str, object](method=name) for name in methods()],
    {"method": "mask_merging", "params": {"mask_strategy": "magnitude", "mask_apply_method": "ties_merging"}},
    {"method": "mask_merging", "params": {"mask_apply_method": "ties_merging_dare"}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: str(sorted(map(str, variant.values()))))
@settings(max_examples=6, deadline=None)
@given(chunk=st.integers(1, 20_000))
def test_the_same_bytes_come_out_whatever_the_size_of_the_pieces(
    merge: Merge, variant: dict[str, object], chunk: int
) -> None:
    whole = digest_of(list_files(merge(models=["full", "lora"], **variant)))

    pieces = digest_of(list_files(merge(chunk, models=["full", "lora"], **variant)))

    assert pieces == whole


@pytest.mark.parametrize("chunk", [1, 5000, 1 << 20])
def test_identical_models_average_to_themselves(merge: Merge, chunk: int) -> None:
    merged = tensors(merge(chunk, method="average", models=["full", "same"]))

    assert merged == tensors(merge(models=["full"]))


def test_lambda_zero_gives_the_base_and_a_weight_of_zero_takes_a_model_out(merge: Merge) -> None:
    nothing = tensors(merge(models=["full", "lora"], params={"scaling_coefficient": 0}))
    without = tensors(merge(models=["full", "lora"], weights=[0, 1]))

    assert nothing == tensors(merge(models=["base"]))
    assert without == tensors(merge(models=["lora"]))


def test_one_expert_at_full_weight_gives_the_expert(merge: Merge) -> None:
    folder = merge(models=["full"])

    # In float32, b + (e - b) is within one step of e, far below what bfloat16 resolves.
    assert tensors(folder) == tensors(folder.parents[2] / "full")


rows = st.integers(1, 4).flatmap(
    lambda count: st.lists(st.lists(st.integers(-64, 64), min_size=count, max_size=count), min_size=1, max_size=4)
)


@given(values=rows, data=st.data())
def test_the_order_of_models_changes_nothing(values: list[list[int]], data: st.DataObject) -> None:
    # Whole numbers add up exactly in float32, so any order gives the very same sum.
    shuffled = data.draw(st.permutations(values))
    one, other = piece_of(deltas=values), piece_of(deltas=shuffled)
    plain, quarter = average.AverageParams(), task_arithmetic.TaskArithmeticParams(scaling_coefficient=0.25)

    for combine, params in ((average.combine, plain), (task_arithmetic.combine, quarter)):
        each = [params] * len(values)
        assert torch.equal(combine(one, params, each), combine(other, params, each))  # type: ignore[arg-type] # each takes its own params
