from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts import as_adapter, as_model
from fakes import FakeJob
from modelworks.core.errors import Cancelled, Invalid
from modelworks.core.nouns import AnyArtifact, Model
from modelworks.merge.run import run
from modelworks.merge.spec import MergeSpec
from tiny import tiny_adapter, tiny_llama


def models(tmp_path: Path, count: int = 3, **config: Any) -> dict[str, Model]:
    names = ["base", *(f"expert-{number}" for number in range(1, count))]
    return {name: as_model(tiny_llama(tmp_path / name, seed, **config), name) for seed, name in enumerate(names)}


def merge(tmp_path: Path, inputs: Mapping[str, AnyArtifact], **spec: Any) -> tuple[FakeJob, Any]:
    job = FakeJob(tmp_path / "job", dict(inputs))
    return job, run(MergeSpec.model_validate(spec), job)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def test_task_arithmetic_equals_the_whole_models_added_up(tmp_path: Path) -> None:
    inputs = models(tmp_path)
    base, first, second = (weights(item.path) for item in inputs.values())

    job, _ = merge(
        tmp_path, inputs, base="base", models=["expert-1", "expert-2"], weights=[1, -0.5],
        params={"scaling_coefficient": 0.3},
    )  # fmt: skip

    merged = weights(job.drafts[0].folder)
    assert merged.keys() == base.keys()
    for name, own in base.items():
        b, e, f = own.float(), first[name].float(), second[name].float()
        assert torch.equal(merged[name], (b + 0.3 * (1 * (e - b) + -0.5 * (f - b))).bfloat16()), name


def test_average_equals_the_mean_of_whole_models_and_needs_no_base(tmp_path: Path) -> None:
    inputs = models(tmp_path)

    job, _ = merge(tmp_path, inputs, method="average", models=list(inputs))

    merged = weights(job.drafts[0].folder)
    for name, values in merged.items():
        whole = [weights(item.path)[name].float() for item in inputs.values()]
        assert torch.equal(values, ((whole[0] + whole[1] + whole[2]) / 3).bfloat16()), name


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"layers.1.self_attn.q_proj": 7}, "rank_pattern": {"v_proj": 1}}],
)
def test_an_adapter_is_folded_in_as_peft_does(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = as_model(tiny_llama(tmp_path / "base", dtype="float32"), "base")
    folder = tiny_adapter(tmp_path / "lora", base.path, targets=("q_proj", "v_proj", "down_proj"), **options)
    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    expected = PeftModel.from_pretrained(network, folder).merge_and_unload().state_dict()

    inputs: dict[str, AnyArtifact] = {"base": base, "lora": as_adapter(folder, "lora", base)}
    job, result = merge(tmp_path, inputs, base="base", models=["lora"])

    merged = weights(job.drafts[0].folder)
    for name, values in merged.items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6, msg=name)
    assert not torch.equal(merged["model.layers.1.self_attn.q_proj.weight"], network_weight(base, "q_proj"))
    assert result["task_vector_norms"]["lora"] > 0


def network_weight(base: Model, module: str) -> torch.Tensor:
    return weights(base.path)[f"model.layers.1.self_attn.{module}.weight"]


def test_an_adapter_of_the_embedding_is_folded_in_as_peft_does(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = as_model(tiny_llama(tmp_path / "base", dtype="float32", tie_word_embeddings=False), "base")
    folder = tiny_adapter(tmp_path / "lora", base.path, targets=("embed_tokens", "k_proj"))
    network = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    expected = PeftModel.from_pretrained(network, folder).merge_and_unload().state_dict()

    inputs: dict[str, AnyArtifact] = {"base": base, "lora": as_adapter(folder, "lora", base)}
    job, _ = merge(tmp_path, inputs, base="base", models=["lora"])

    for name, values in weights(job.drafts[0].folder).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6, msg=name)


def test_what_is_published_loads_and_speaks_like_the_base(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inputs = models(tmp_path)

    job, result = merge(tmp_path, inputs, base="base", models=["expert-1"], name="both", dtype="float32")

    draft = job.drafts[0]
    network = AutoModelForCausalLM.from_pretrained(draft.folder)
    assert network.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(draft.folder).chat_template
    assert (draft.folder / "generation_config.json").read_bytes() == (
        inputs["base"].path / "generation_config.json"
    ).read_bytes()
    assert (draft.name, draft.facts["dtype"], result["tensors"]) == ("both", "float32", len(network.state_dict()) - 1)
    assert [(parent.role, parent.name) for parent in draft.parents] == [("base", "base"), ("expert", "expert-1")]
    card = (draft.folder / "README.md").read_text()
    assert inputs["expert-1"].digest in card
    assert '"method": "task_arithmetic"' in card


def test_norms_and_cosines_are_those_of_the_whole_task_vectors(tmp_path: Path) -> None:
    inputs = models(tmp_path)
    flat = [torch.cat([value.double().view(-1) for value in weights(item.path).values()]) for item in inputs.values()]
    first, second = flat[1] - flat[0], flat[2] - flat[0]

    _, result = merge(tmp_path, inputs, base="base", models=["expert-1", "expert-2"])

    assert result["task_vector_norms"]["expert-1"] == pytest.approx(first.norm().item(), rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0).item()
    assert result["cosines"]["expert-1 / expert-2"] == pytest.approx(cosine, abs=2e-4)


def test_excluded_tensors_stay_as_in_the_base(tmp_path: Path) -> None:
    inputs = models(tmp_path)

    job, result = merge(
        tmp_path, inputs, base="base", models=["expert-1"], exclude_param_names_regex=[r".*embed_tokens", r".*norm"]
    )

    merged, base, expert = (
        weights(path) for path in (job.drafts[0].folder, *(inputs[n].path for n in ("base", "expert-1")))
    )
    for name in merged:
        kept = "embed_tokens" in name or "norm" in name
        assert torch.equal(merged[name], (base if kept else expert)[name]), name
    assert result["tensors_merged"] == 14  # 7 projections in each of 2 layers


def test_an_expert_that_writes_its_tied_head_out_is_merged_all_the_same(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    file = inputs["expert-1"].path / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)

    job, _ = merge(tmp_path, inputs, base="base", models=["expert-1"])

    assert "lm_head.weight" not in weights(job.drafts[0].folder)


def test_a_result_that_is_not_finite_names_the_tensor(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    file = inputs["expert-1"].path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][258, 5] = float("nan")  # 258 * 16 + 5; the spot check looks at 256 rows
    save_file(tensors, file)

    with pytest.raises(Invalid, match=r"embed_tokens\.weight: 1 values are NaN or infinite, the first at element 4133"):
        merge(tmp_path, inputs, base="base", models=["expert-1"])


def test_progress_counts_every_byte_and_a_cancelled_merge_publishes_nothing(tmp_path: Path) -> None:
    inputs = models(tmp_path)
    job, result = merge(tmp_path, inputs, base="base", models=["expert-1"])

    assert job.progressed[-1] == (result["bytes"], result["bytes"], "bytes")

    stopped = FakeJob(tmp_path / "stopped", dict(inputs), cancel_after=5)
    with pytest.raises(Cancelled):
        run(MergeSpec(base="base", models=("expert-1",)), stopped)
    assert stopped.drafts == []


def test_the_result_can_be_told_in_json(tmp_path: Path) -> None:
    job, result = merge(tmp_path, models(tmp_path), base="base", models=["expert-1", "expert-2"])

    assert json.loads(json.dumps(result)) == result
    assert json.loads(json.dumps(job.drafts[0].recipe))["spec"]["models"] == ["expert-1", "expert-2"]
