"""The five methods of merging-eval: bit for bit as the package, and as a whole-model reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import merging_eval_reference as reference
from artifacts import as_adapter, as_model
from fakes import FakeJob
from modelworks.core.errors import Invalid
from modelworks.core.nouns import AnyArtifact
from modelworks.merge.engine import CHUNK_ELEMENTS
from modelworks.merge.plan import make_plan
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from tiny import tiny_adapter

EXPERTS = ("expert-1", "expert-2", "expert-3")
# Method, parameters, and the beginning of the sha256 that merging-eval 0.1.4 on torch 2.13.0 gave for the family.
GOLDEN: list[tuple[str, dict[str, Any], str]] = [
    ("average_merging", {}, "1205dee31c882ae8"),
    ("task_arithmetic", {"scaling_coefficient": 1.0}, "10fea3dfbf7acaca"),
    ("task_arithmetic", {"scaling_coefficient": 0.3}, "ce8ebaa38df516d5"),
    ("ties_merging", {}, "2cc1491c0257e63f"),
    ("ties_merging", {"param_value_mask_rate": 0.0}, "2ef340ccf3444e5a"),
    ("ties_merging", {"param_value_mask_rate": 0.55, "scaling_coefficient": 0.3}, "e887a237dbb90237"),
    ("ties_merging", {"param_value_mask_rate": 1.0}, "89137ad992b42fb3"),
    ("ties_merging_dare", {}, "dbc1b03cf17eb55a"),
    ("ties_merging_dare", {"param_value_mask_rate": 0.3, "scaling_coefficient": 0.7}, "18827ccc889b187a"),
    ("ties_merging_dare", {"param_value_mask_rate": 1.0}, "912b826669b2a13c"),
    ("mask_merging", {"weight_mask_rates": [0.5, 0.5, 0.5]}, "31c85403ea3615d1"),
    ("mask_merging", {"weight_mask_rates": [0.3, 1.0, 0.0], "use_weight_rescale": False}, "94dc750925bbdbad"),
    ("mask_merging", {"weight_mask_rates": [0.3, 0.9, 0.77], "mask_strategy": "magnitude"}, "609498d2cd2ab4f5"),
    (
        "mask_merging",
        {"weight_mask_rates": [0.5, 0.6, 0.7], "mask_apply_method": "task_arithmetic", "scaling_coefficient": 0.6},
        "3b2ced7fdfa1be57",
    ),
    (
        "mask_merging",
        {"weight_mask_rates": [0.5, 0.6, 0.7], "mask_apply_method": "ties_merging", "param_value_mask_rate": 0.4},
        "f42dee09d9a1ed24",
    ),
    (
        "mask_merging",
        {"weight_mask_rates": [0.5, 0.6, 0.7], "mask_apply_method": "ties_merging_dare", "param_value_mask_rate": 0.4},
        "72f51c69fe407996",
    ),
]


def merge(folders: list[Path], method: str, params: dict[str, Any], chunk: int = 700, **spec: Any) -> reference.Weights:
    inputs: dict[str, AnyArtifact] = {folder.name: as_model(folder, folder.name) for folder in folders}
    return merge_artifacts(folders[0].parent, inputs, method, params, chunk, **spec)


def merge_artifacts(
    root: Path, inputs: dict[str, AnyArtifact], method: str, params: dict[str, Any], chunk: int = 700, **spec: Any
) -> reference.Weights:
    ours = {"task_arithmetic": "task_arithmetic_bf16"}.get(method, method)
    base, *models = inputs
    body = {"method": ours, "base": base, "models": models, "params": params, **spec}
    job = FakeJob(root / f"{ours}-{chunk}", inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_ELEMENTS, "cpu", chunk)
        run(MergeSpec.model_validate(body), job)
    assert json.loads((job.drafts[0].folder / "config.json").read_text())["dtype"] == "bfloat16"
    merged: reference.Weights = load_file(job.drafts[0].folder / "model.safetensors")
    return merged


@pytest.mark.parametrize(("method", "params", "golden"), GOLDEN)
def test_gives_the_very_bits_of_merging_eval(tmp_path: Path, method: str, params: dict[str, Any], golden: str) -> None:
    folders = reference.family(tmp_path)
    base, *experts = map(reference.load, folders)

    expected = reference.digest(reference.merge(method, base, experts, **params))

    assert expected.startswith(golden)
    assert reference.digest(merge(folders, method, params)) == expected


@pytest.mark.parametrize("method", ["average_merging", "task_arithmetic", "ties_merging", "mask_merging"])
def test_rounds_float32_models_first_and_keeps_an_untied_head(tmp_path: Path, method: str) -> None:
    folders = reference.family(tmp_path, dtype="float32", tie_word_embeddings=False)
    base, *experts = map(reference.load, folders)
    params: dict[str, Any] = {"weight_mask_rates": [0.5] * 3} if method == "mask_merging" else {}

    merged = merge(folders, method, params)

    assert "lm_head.weight" in merged
    assert reference.digest(merged) == reference.digest(reference.merge(method, base, experts, **params))


def test_tensors_left_out_stay_as_in_the_base_and_take_no_draws_and_no_part_in_the_threshold(tmp_path: Path) -> None:
    folders = reference.family(tmp_path)
    base, *experts = map(reference.load, folders)
    left_out = {name for name in base if "self_attn" in name or "embed" in name}
    inner = {name: values for name, values in base.items() if name not in left_out}

    for method, params in (("ties_merging_dare", {}), ("mask_merging", {"weight_mask_rates": [0.4] * 3})):
        merged = merge(folders, method, params, exclude_param_names_regex=[r".*self_attn", r"model\.embed_tokens"])

        expected = reference.merge(method, inner, experts, **params)
        assert reference.digest(merged) == reference.digest({**base, **expected})


def test_a_tied_head_that_is_written_out_is_left_out(tmp_path: Path) -> None:
    folders = reference.family(tmp_path)
    base, *experts = map(reference.load, folders)
    for folder in folders:
        tensors = load_file(folder / "model.safetensors")
        head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})

    merged = merge(folders, "ties_merging_dare", {}, exclude_param_names_regex=["lm_head"])

    assert reference.digest(merged) == reference.digest(reference.merge("ties_merging_dare", base, experts))


def test_an_adapter_counts_as_the_model_it_makes(tmp_path: Path) -> None:
    base = as_model(reference.family(tmp_path)[0], "base")
    folder = tiny_adapter(tmp_path / "lora", base.path)
    inputs: dict[str, AnyArtifact] = {"base": base, "lora": as_adapter(folder, "lora", base)}

    folded = merge_artifacts(tmp_path, inputs, "average_merging", {})
    added = merge_artifacts(tmp_path, inputs, "task_arithmetic", {"scaling_coefficient": 0.5})

    job = FakeJob(tmp_path / "job", inputs)
    run(MergeSpec(base="base", models=("lora",)), job)
    assert reference.digest(folded) == reference.digest(reference.load(job.drafts[0].folder))
    expected = reference.merge("task_arithmetic", reference.load(base.path), [folded], scaling_coefficient=0.5)
    assert reference.digest(added) == reference.digest(expected)


def test_another_seed_gives_another_mask_and_no_rates_mean_a_half_each(tmp_path: Path) -> None:
    folders = reference.family(tmp_path)

    assumed = merge(folders, "mask_merging", {}, chunk=300)
    halves = merge(folders, "mask_merging", {"weight_mask_rates": [0.5, 0.5, 0.5]}, chunk=500)
    other = merge(folders, "mask_merging", {"seed": 43}, chunk=700)

    assert reference.digest(assumed) == reference.digest(halves) != reference.digest(other)


@pytest.mark.parametrize(
    ("method", "spec", "problem"),
    [
        (
            "ties_merging",
            {"params": {"param_value_mask_rate": 1.5}},
            "params.param_value_mask_rate: Input should be less",
        ),
        (
            "ties_merging_dare",
            {"params": {"param_value_mask_rate": 0}},
            "params.param_value_mask_rate: Input should be gr",
        ),
        ("mask_merging", {"params": {"weight_mask_rates": [0.5]}}, "params.weight_mask_rates: 1 rates for 3 models"),
        (
            "mask_merging",
            {"params": {"weight_mask_rates": "0.5"}},
            "params.weight_mask_rates: Input should be a valid t",
        ),
        (
            "mask_merging",
            {"params": {"mask_strategy": "magnitude", "weight_mask_rates": [0.5, 0, 0.5]}},
            "params.weight_mask_rates: by magnitude, a rate is more than 0",
        ),
        (
            "mask_merging",
            {"params": {"mask_apply_method": "ties_merging_dare", "param_value_mask_rate": 0}},
            "params.param_value_mask_rate: for ties_merging_dare it is more than 0",
        ),
        ("average_merging", {"dtype": "float32"}, "dtype: average_merging gives bfloat16"),
        ("task_arithmetic_bf16", {"weights": [1, 1, 1]}, "weights: task_arithmetic_bf16 takes none"),
    ],
)
def test_what_would_crash_or_surprise_is_refused_before_any_work(
    tmp_path: Path, method: str, spec: dict[str, Any], problem: str
) -> None:
    inputs = {folder.name: as_model(folder, folder.name) for folder in reference.family(tmp_path)}

    with pytest.raises(Invalid) as caught:
        make_plan(MergeSpec.model_validate({"method": method, "base": "base", "models": EXPERTS, **spec}), inputs)

    assert str(caught.value.problems[0]).startswith(problem)
    assert len(caught.value.problems) == 1
