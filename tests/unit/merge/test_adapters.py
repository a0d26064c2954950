from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import as_adapter, as_model
from fakes import FakeJob
from modelworks.core.errors import Invalid
from modelworks.core.nouns import AnyArtifact, ArtifactKind, Model
from modelworks.merge.engine import Pace
from modelworks.merge.folder import merge_into
from modelworks.merge.plan import make_plan
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from tiny import tiny_adapter, tiny_llama

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Model:
    return as_model(tiny_llama(tmp_path / "base", dtype="float32", tie_word_embeddings=False), "base")


def adapter(base: Model, name: str, seed: int = 0, rank: int = 2, **options: Any) -> AnyArtifact:
    return as_adapter(tiny_adapter(base.path.parent / name, base.path, seed, rank, **options), name, base)


def merge(tmp_path: Path, inputs: Mapping[str, AnyArtifact], **spec: Any) -> tuple[FakeJob, Any]:
    job = FakeJob(tmp_path / f"job-{spec['method']}-{len(list(tmp_path.iterdir()))}", dict(inputs))
    return job, run(MergeSpec.model_validate({"base": "base", **spec}), job)


def with_peft(base: Model, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the base with an adapter in it, by PEFT's own hand."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    weights: dict[str, torch.Tensor] = PeftModel.from_pretrained(network, folder).merge_and_unload().state_dict()
    return weights


def change(base: Model, folder: Path) -> dict[str, torch.Tensor]:
    own = load_file(base.path / "model.safetensors")
    return {name: values - own[name] for name, values in with_peft(base, folder).items()}


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, wanted[name], rtol=0, atol=atol, msg=name)


def test_adapters_of_other_ranks_targets_and_scales_add_up_exactly_in_one_that_peft_loads(
    tmp_path: Path, base: Model
) -> None:
    inputs = {
        "base": base,
        "a": adapter(base, "a", 1, 2, targets=("q_proj", "v_proj", "embed_tokens")),
        "b": adapter(base, "b", 2, 3, targets=("v_proj", "up_proj"), use_rslora=True),
        "c": adapter(base, "c", 3, 1, targets=("layers.1.mlp.up_proj",), alpha_pattern={"up_proj": 7}),
    }

    job, result = merge(tmp_path, inputs, method="lora_add", models=["a", "b", "c"], weights=[1, -0.5, 2])

    folder = job.drafts[0].folder
    a, b, c = (change(base, inputs[name].path) for name in "abc")
    same(change(base, folder), {name: a[name] - 0.5 * b[name] + 2 * c[name] for name in a})
    config = json.loads((folder / "adapter_config.json").read_text())
    ranks = {"q_proj": 2, "v_proj": 5, "up_proj 0": 3, "up_proj 1": 4}
    assert config["r"] == config["lora_alpha"] == 5
    assert config["rank_pattern"]["model.layers.0.mlp.up_proj"] == ranks["up_proj 0"]
    assert config["rank_pattern"]["model.layers.1.mlp.up_proj"] == ranks["up_proj 1"]
    assert config["target_modules"] == ["embed_tokens", "q_proj", "up_proj", "v_proj"]
    assert result["relative_error"] == 0


def test_one_adapter_published_has_its_base_and_speaks_as_peft_makes_it_speak(tmp_path: Path, base: Model) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inputs = {"base": base, "a": adapter(base, "a", 1), "b": adapter(base, "b", 2)}

    job, result = merge(tmp_path, inputs, method="lora_add", models=["a", "b"], name="both")

    (draft,) = job.drafts
    assert (draft.kind, draft.name) == (ArtifactKind.ADAPTER, "both")
    assert draft.facts == {
        "base": base.id, "base_name": "base", "base_digest": base.digest, "rank": 4, "alpha": 4.0,
        "target_modules": ("q_proj", "v_proj"), "parameters": 2 * 4 * (16 + 16 + 16 + 8),
    }  # fmt: skip
    assert [(parent.role, parent.name) for parent in draft.parents] == [
        ("base", "base"),
        ("expert", "a"),
        ("expert", "b"),
    ]
    assert json.loads(json.dumps(result)) == result
    tokens = torch.arange(3, 40)[None]
    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    peft = PeftModel.from_pretrained(network, inputs["a"].path, adapter_name="a")
    peft.load_adapter(inputs["b"].path, adapter_name="b")
    peft.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum", combination_type="cat")
    peft.set_adapter("sum")
    expected = peft(tokens).logits
    fresh = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    torch.testing.assert_close(
        PeftModel.from_pretrained(fresh, draft.folder)(tokens).logits, expected, rtol=0, atol=1e-5
    )


def test_folding_the_sum_equals_folding_the_adapters(tmp_path: Path, base: Model) -> None:
    inputs = {"base": base, "a": adapter(base, "a", 1), "b": adapter(base, "b", 2, 3, targets=("down_proj", "v_proj"))}
    job, _ = merge(tmp_path, inputs, method="lora_add", models=["a", "b"], weights=[0.5, 1])

    both, _ = merge(tmp_path, inputs, method="lora_fold", models=["a", "b"], weights=[0.5, 1])

    assert both.drafts[0].kind is ArtifactKind.MODEL
    same(load_file(both.drafts[0].folder / "model.safetensors"), with_peft(base, job.drafts[0].folder))


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True, "targets": ("q_proj", "down_proj")}, {"modules_to_save": ["lm_head", "norm"]}],
)
def test_dora_and_saved_modules_are_folded_in_as_peft_does(
    tmp_path: Path, base: Model, options: dict[str, Any]
) -> None:
    inputs = {"base": base, "a": adapter(base, "a", 1, **options)}
    file = inputs["a"].path / "adapter_model.safetensors"
    moved = {"magnitude": 1.3, "lm_head": -0.7, "norm": 1.1}
    save_file(
        {
            key: value * next((by for word, by in moved.items() if word in key), 1)
            for key, value in load_file(file).items()
        },
        file,
    )

    job, _ = merge(tmp_path, inputs, method="lora_fold", models=["a"])

    same(load_file(job.drafts[0].folder / "model.safetensors"), with_peft(base, inputs["a"].path))


def test_compressing_to_the_full_rank_changes_nothing_and_below_it_is_the_best_there_is(
    tmp_path: Path, base: Model
) -> None:
    inputs = {"base": base, "a": adapter(base, "a", 1), "b": adapter(base, "b", 2, 3, use_rslora=True)}
    a, b = (change(base, inputs[name].path) for name in "ab")
    summed = {name: a[name] + b[name] for name in a}

    job, result = merge(tmp_path, inputs, method="lora_compress", models=["a", "b"], params={"rank": 16})
    cut, told = merge(tmp_path, inputs, method="lora_compress", models=["a", "b"], params={"rank": 2})

    same(change(base, job.drafts[0].folder), summed)
    assert job.drafts[0].facts["rank"] == 5
    assert result["relative_error"] < 1e-6
    found = change(base, cut.drafts[0].folder)
    for row in told["matrices"]:
        name = row["matrix"]
        values = torch.linalg.svdvals(summed[name].double())
        best = float(values[2:].norm() / values.norm())
        assert row["relative_error"] == pytest.approx(best, rel=1e-4)
        assert float((found[name] - summed[name]).norm() / summed[name].norm()) == pytest.approx(best, rel=1e-3)


def test_a_share_of_energy_keeps_as_many_ranks_as_it_takes(tmp_path: Path, base: Model) -> None:
    inputs = {"base": base, "a": adapter(base, "a", 1, 6)}

    _, result = merge(tmp_path, inputs, method="lora_compress", models=["a"], params={"energy": 0.8})

    a = change(base, inputs["a"].path)
    for row in result["matrices"]:
        squares = torch.linalg.svdvals(a[row["matrix"]].double()).square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[row["rank"] - 1] >= 0.8
        assert row["rank"] == 1 or shares[row["rank"] - 2] < 0.8


def tuned(base: Model, folder: Path, **more: torch.Tensor) -> Model:
    """The base with a change of rank 2 in all of its projections."""
    generator = torch.Generator().manual_seed(9)
    weights = load_file(base.path / "model.safetensors")
    for name, values in weights.items():
        if "proj" in name:
            left, right = (torch.randn(size, 2, generator=generator) * 0.1 for size in values.shape)
            weights[name] = values + left @ right.T
    tiny_llama(folder, dtype="float32", tie_word_embeddings=False)
    save_file({**weights, **more}, folder / "model.safetensors", metadata={"format": "pt"})
    return as_model(folder, "tuned")


def test_a_lora_extracted_from_a_fine_tuned_model_gives_it_back(tmp_path: Path, base: Model) -> None:
    inputs = {"base": base, "tuned": tuned(base, tmp_path / "tuned")}

    job, result = merge(tmp_path, inputs, method="lora_extract", models=["tuned"], params={"rank": 2})

    draft = job.drafts[0]
    same(with_peft(base, draft.folder), load_file(inputs["tuned"].path / "model.safetensors"))
    config = json.loads((draft.folder / "adapter_config.json").read_text())
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    assert len(result["matrices"]) == 14
    assert result["relative_error"] < 1e-5
    assert result["left_out"] == {}


def test_what_a_lora_cannot_hold_is_told(tmp_path: Path, base: Model) -> None:
    norm = torch.full((16,), 2.0)
    inputs = {"base": base, "tuned": tuned(base, tmp_path / "tuned", **{"model.norm.weight": norm})}

    job, result = merge(
        tmp_path, inputs, method="lora_extract", models=["tuned"],
        params={"rank": 2, "include": [r"model\.layers\.\d+\.mlp", "lm_head"]}, exclude_param_names_regex=[".*gate"],
    )  # fmt: skip

    assert [row["matrix"] for row in result["matrices"] if row["norm"]] == [
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("down", "up")
    ]
    own = load_file(base.path / "model.safetensors")["model.norm.weight"]
    assert result["left_out"]["model.norm.weight"] == pytest.approx(float((norm - own).norm()), rel=1e-5)
    assert "model.norm.weight" in (job.drafts[0].folder / "README.md").read_text()
    assert result["relative_error"] > 0.5


def test_an_adapter_that_is_no_plain_lora_can_be_made_one_by_extraction(tmp_path: Path, base: Model) -> None:
    inputs = {"base": base, "a": adapter(base, "a", 1, use_dora=True)}
    file = inputs["a"].path / "adapter_model.safetensors"
    save_file({key: value * (1.2 if "magnitude" in key else 1) for key, value in load_file(file).items()}, file)

    job, _ = merge(tmp_path, inputs, method="lora_extract", models=["a"], params={"rank": 16})

    same(with_peft(base, job.drafts[0].folder), with_peft(base, inputs["a"].path))


def refusal(tmp_path: Path, inputs: Mapping[str, AnyArtifact], models: Sequence[str], method: str, **spec: Any) -> str:
    with pytest.raises(Invalid) as caught:
        merge(tmp_path, inputs, method=method, models=models, **spec)
    return caught.value.message


def test_what_cannot_be_added_is_refused_with_the_way_out(tmp_path: Path, base: Model) -> None:
    inputs = {
        "base": base, "full": tuned(base, tmp_path / "full"), "a": adapter(base, "a", 1),
        "dora": adapter(base, "dora", 1, use_dora=True),
    }  # fmt: skip

    assert "full: is a full model, and lora_add takes adapters of base" in refusal(
        tmp_path, inputs, ["a", "full"], "lora_add"
    )
    assert "by DoRA, so it has no factors" in refusal(tmp_path, inputs, ["dora"], "lora_compress", params={"rank": 1})
    assert "and so is energy" in refusal(tmp_path, inputs, ["full"], "lora_extract")
    assert "missing )" in refusal(tmp_path, inputs, ["full"], "lora_extract", params={"rank": 1, "include": ["("]})
    assert "no matrix is left" in refusal(
        tmp_path, inputs, ["full"], "lora_extract", params={"rank": 1, "include": ["x"]}
    )


def test_a_model_that_is_not_finite_is_named(tmp_path: Path, base: Model) -> None:
    inputs = {"base": base, "tuned": tuned(base, tmp_path / "tuned", **{UP: torch.full((24, 16), torch.nan)})}

    spec = MergeSpec(method="lora_extract", base="base", models=("tuned",), params={"rank": 1})

    with pytest.raises(Invalid, match=rf"^tuned: {UP} holds NaN"):
        merge_into(tmp_path / "out", make_plan(spec, inputs), FakeJob(tmp_path), Pace(), "x", (), {})


def test_a_model_that_learnt_nothing_gives_an_adapter_that_does_nothing(tmp_path: Path, base: Model) -> None:
    job, result = merge(tmp_path, {"base": base}, method="lora_extract", models=["base"], params={"rank": 4})

    same(with_peft(base, job.drafts[0].folder), load_file(base.path / "model.safetensors"), 0)
    assert result["relative_error"] == 0


def test_a_rank_may_differ_by_the_tensors_name(tmp_path: Path, base: Model) -> None:
    inputs = {"base": base, "a": adapter(base, "a", 1, 6)}
    params = {"rank": [{"filter": "q_proj", "value": 3}, {"value": 1}]}

    job, result = merge(tmp_path, inputs, method="lora_compress", models=["a"], params=params)

    assert {row["matrix"].split(".")[-2]: row["rank"] for row in result["matrices"]} == {"q_proj": 3, "v_proj": 1}
    assert job.drafts[0].facts["rank"] == 3
