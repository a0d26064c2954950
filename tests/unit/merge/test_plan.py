from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from artifacts import as_adapter, as_model
from modelworks.core.errors import Invalid
from modelworks.core.nouns import AnyArtifact, Model
from modelworks.merge.plan import make_plan, spans
from modelworks.merge.spec import MergeSpec
from tiny import tiny_adapter, tiny_llama


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Model]:
    return {name: as_model(tiny_llama(tmp_path / name, seed), name) for seed, name in enumerate(("base", "expert"))}


def refused(inputs: Mapping[str, AnyArtifact], **spec: Any) -> list[str]:
    with pytest.raises(Invalid) as caught:
        make_plan(MergeSpec.model_validate({"base": "base", "models": ["expert"], **spec}), inputs)
    return [str(problem) for problem in caught.value.problems]


def test_a_good_merge_passes(inputs: dict[str, Model]) -> None:
    make_plan(MergeSpec(base="base", models=("expert",)), inputs)


def test_an_unknown_method_is_answered_with_the_nearest(inputs: dict[str, Model]) -> None:
    (problem,) = refused(inputs, method="task_arithmetik")

    assert problem.startswith("method: none is called 'task_arithmetik' (did you mean task_arithmetic ")


def test_wrong_parameters_and_weights_are_told_at_once(inputs: dict[str, Model]) -> None:
    problems = refused(inputs, params={"scaling": 1}, weights=[1, 2], base=None)

    assert problems == [
        "weights: 2 weights for 1 models (give one a model, in the same order)",
        "params.scaling: unknown key (did you mean scaling_coefficient?)",
        "base: task_arithmetic needs one (name the model that the others were made from)",
    ]


def test_average_takes_no_weights(inputs: dict[str, Model]) -> None:
    assert refused(inputs, method="average", weights=[1])[0].startswith("weights: average takes none")


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path, inputs: dict[str, Model]) -> None:
    file = inputs["expert"].path / "model.safetensors"
    tensors = load_file(file)
    tensors["extra"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:3].clone()
    save_file(tensors, file)

    problems = refused(inputs)

    assert [problem.split(" (")[0] for problem in problems] == [
        "expert: model.layers.0.mlp.up_proj.weight has shape [3, 16], in base [24, 16]",
        "expert: model.norm.weight is missing",
        "expert: extra is not in base",
    ]


def test_configs_that_differ_are_told(tmp_path: Path, inputs: dict[str, Model]) -> None:
    folder = tiny_llama(tmp_path / "other", 3, rope_parameters={"rope_theta": 500.0, "rope_type": "default"})

    problems = refused({**inputs, "expert": as_model(folder, "expert")})

    assert problems == ["expert: rope_theta is 500.0, in base 10000.0 (merge models of one architecture)"]


def test_a_damaged_expert_does_not_hide_the_other_problems(inputs: dict[str, Model]) -> None:
    file = inputs["expert"].path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])

    problems = refused(inputs, exclude_param_names_regex=["embed_tokens", "("])

    assert "cut short" in problems[0]
    assert "'embed_tokens' matches no tensor (patterns match from the start" in problems[1]
    assert "'('" in problems[2]


def test_a_quantised_model_is_refused(inputs: dict[str, Model]) -> None:
    path = inputs["expert"].path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))

    assert "packed weights cannot be merged" in refused(inputs)[0]


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, inputs: dict[str, Model]) -> None:
    other = inputs["expert"]
    adapter = as_adapter(tiny_adapter(tmp_path / "lora", other.path), "lora", other)

    problems = refused({**inputs, "lora": adapter}, models=["lora"])

    assert problems == ["lora: was trained on expert, not on base (merge on its own base)"]


def test_an_adapter_is_no_base(tmp_path: Path, inputs: dict[str, Model]) -> None:
    base = inputs["base"]
    adapter = as_adapter(tiny_adapter(tmp_path / "lora", base.path), "lora", base)

    problems = refused({**inputs, "lora": adapter}, base="lora")

    assert problems == ["base: lora is an adapter, not a full model (its base is base)"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"init_lora_weights": "olora"}, "changes the base's own weights"),
        ({"modules_to_save": ["embed_tokens"]}, "uses for its head as well"),
        ({"targets": ("embed_tokens",), "use_dora": True}, "an embedding under DoRA"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_what_cannot_be_folded_in_is_refused(
    tmp_path: Path, inputs: dict[str, Model], options: dict[str, Any], word: str
) -> None:
    base = inputs["base"]
    adapter = as_adapter(tiny_adapter(tmp_path / "lora", base.path, **options), "lora", base)

    problems = refused({**inputs, "lora": adapter}, models=["lora"])

    assert any(word in problem for problem in problems)


def test_spans_cover_a_matrix_at_whole_blocks_of_rows() -> None:
    # 64 rows of 10 are 640 elements, so pieces of 700 become 640.
    assert list(spans((150, 10), 700)) == [(0, 640), (640, 1280), (1280, 1500)]
    assert list(spans((10,), 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(spans((), 4)) == [(0, 1)]
    assert list(spans((0, 4), 4)) == []


def test_specs_and_plans_load_no_torch() -> None:
    code = (
        "import sys, modelworks.merge.plan, modelworks.weights.layout, modelworks.weights.pull as p;"
        "modelworks.merge.plan.methods(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
