from __future__ import annotations

from typing import Any

import pytest
import yaml

from modelworks.core.errors import Invalid
from modelworks.core.spec import parse_spec
from modelworks.merge.mergekit import is_mergekit, translate
from modelworks.merge.mergekit_methods import KNOWN
from modelworks.merge.method import methods
from modelworks.merge.spec import MergeSpec


def body_of(text: str) -> dict[str, Any]:
    body = translate(yaml.safe_load(text)).body
    parse_spec(MergeSpec, body)
    return body


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(Invalid) as refused:
        translate(yaml.safe_load(text))
    return {problem.where: f"{problem.what} ({problem.remedy})" for problem in refused.value.problems}


def test_a_file_is_known_by_its_merge_method() -> None:
    assert is_mergekit({"merge_method": "ties"})
    assert not is_mergekit({"method": "ties", "models": ["a"]})


def test_a_listed_base_is_no_task_vector() -> None:
    body = body_of("""
        merge_method: task_arithmetic
        base_model: b
        models: [{model: b, parameters: {weight: 9}}, {model: x, parameters: {weight: 0.5}}, {model: y+lora}]
        parameters: {weight: 1, lambda: 0.7}
        dtype: float32
        out_dtype: torch.bfloat16
    """)

    assert body["base"] == "b"
    assert body["models"] == ["x", "y+lora"]
    assert body["model_params"] == [{"weight": 0.5}, {}]
    assert 0.7 in body["params"].values()
    assert body["dtype"] == "bfloat16"


def test_where_a_base_means_nothing_it_is_one_of_the_models() -> None:
    listed = body_of("{merge_method: linear, base_model: b, models: [{model: b}, {model: x}], parameters: {weight: 1}}")
    added = body_of("{merge_method: linear, base_model: b, models: [{model: x}], parameters: {weight: 1}}")

    assert listed["models"] == ["b", "x"]
    assert added["models"] == ["x", "b"]
    assert added["model_params"] == [{}, {}]


def test_slerp_goes_from_the_base_wherever_it_is_listed() -> None:
    models = body_of("{merge_method: slerp, base_model: b, models: [{model: x}, {model: b}], parameters: {t: 0.2}}")
    slices = body_of("""
        merge_method: slerp
        slices:
        - base_model: b
          sources: [{model: x, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]
          parameters: {t: [0, 1]}
    """)

    assert models["models"] == slices["models"] == ["b", "x"]
    assert [source["model"] for source in slices["slices"][0]["sources"]] == ["b", "x"]
    assert slices["base"] == "b"
    assert slices["slices"][0]["params"] == {"t": [0, 1]}


def test_what_mergekit_takes_as_text_or_alone_is_written_out() -> None:
    body = body_of("""
        merge_method: linear
        models:
        - {model: {model: {path: org/x, revision: v1}, lora: org/l}, parameters: {weight: {filter: mlp, value: 1e-1}}}
        - {model: y, parameters: {weight: [{filter: mlp, value: [0, 1e-0]}, {value: 2}]}}
    """)

    assert body["models"] == ["org/x@v1+org/l", "y"]
    assert body["model_params"] == [
        {"weight": [{"filter": "mlp", "value": 0.1}]},
        {"weight": [{"filter": "mlp", "value": [0, 1.0]}, {"value": 2}]},
    ]


def test_what_has_no_effect_is_told() -> None:
    notes = translate(
        yaml.safe_load("""
        merge_method: linear
        models: [{model: x, parameters: {weight: 1, density: 0.5, normalize: false}}, {model: y}]
        parameters: {weight: 1, int8_mask: true}
        dtype: bfloat16
        out_dtype: float16
    """)
    ).notes

    assert [note.partition(" has")[0] for note in notes] == [
        "parameters.int8_mask", "models.0.parameters.density", "models.0.parameters.normalize", "dtype bfloat16",
    ]  # fmt: skip


def test_tokenizer_and_template_are_passed_on() -> None:
    body = body_of("""
        merge_method: linear
        models: [{model: x}, {model: y}]
        parameters: {weight: 1}
        tokenizer: {source: x, tokens: {"<s>": {source: {kind: zero}}}, pad_to_multiple_of: 64}
        chat_template: chatml
    """)
    short = body_of("{merge_method: linear, models: [{model: x, parameters: {weight: 1}}], tokenizer_source: union}")

    assert body["tokenizer"] == {
        "source": "x", "tokens": {"<s>": {"source": {"kind": "zero"}}}, "pad_to_multiple_of": 64,
    }  # fmt: skip
    assert "<|im_start|>" in body["chat_template"]
    assert short["tokenizer"] == {"source": "union", "pad_to_multiple_of": 1}


def test_every_problem_is_told_at_once_by_its_key_path() -> None:
    found = problems_of("""
        merge_method: slerp
        slices:
        - sources: [{model: x, layer_range: [2, 1]}, {model: b, layer_range: [0, 1], parameters: {wieght: 1}}]
          base_model: b
        - sources: [{model: x, layer_range: [2, 3]}]
          base_model: c
          parameters: {t: 1}
        dtype: float8
        tokenizer_source: base
        tokenizer: {source: base}
        chat_template: alpaca
    """)

    assert found.keys() == {
        "slices.0.sources.0.layer_range", "slices.0.sources.1.parameters.wieght", "slices.0", "slices.1.base_model",
        "slices.1.sources", "dtype", "tokenizer", "chat_template",
    }  # fmt: skip
    assert "did you mean weight" in found["slices.0.sources.1.parameters.wieght"]
    assert "needs t" in found["slices.0"]


def test_a_wrong_shape_is_told_by_its_key_path() -> None:
    found = problems_of("""
        merge_method: linear
        modle: [x]
        slices: [{sources: [{model: x, layer_range: [0, many]}, {model: [x], layer_range: [0, 1]}]}]
    """)

    assert found.keys() == {"modle", "slices.0.sources.0.layer_range.1", "slices.0.sources.1.model"}
    assert "did you mean" in found["modle"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{merge_method: ties, models: [{model: x, parameters: {weight: 1}}]}", "base_model"),
        ("{merge_method: ties, base_model: b, models: [{model: x}]}", "models.0"),
        ("{merge_method: linear, base_model: b, models: [{model: x, parameters: {weight: 1}}]}", "base_model"),
        ("{merge_method: nearswap, base_model: b, models: [{model: x}]}", "parameters"),
        ("{merge_method: linear, models: [{model: x}, {model: x}], parameters: {weight: 1}}", "models.1"),
        ("{merge_method: linear, modules: {}, models: [{model: x}], parameters: {weight: 1}}", "modules"),
        ("{merge_method: tise, models: [{model: x}]}", "merge_method"),
        ("{merge_method: linear}", "models"),
    ],
)
def test_what_mergekit_would_refuse_is_refused(text: str, where: str) -> None:
    assert where in problems_of(text)


def test_all_of_mergekits_methods_are_ours() -> None:
    assert KNOWN.keys() - methods().keys() == set()


def test_options_of_ours_may_stand_beside_mergekits() -> None:
    body = body_of("{merge_method: linear, models: [{model: x}], parameters: {weight: 1}, name: me/x, device: cpu}")

    assert (body["name"], body["device"]) == ("me/x", "cpu")
