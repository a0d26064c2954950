from __future__ import annotations

import pytest

from modelworks.core.errors import Invalid
from modelworks.core.spec import parse_spec
from modelworks.search.outcomes import Outcome, metric_of, picture, ranked
from modelworks.search.sweep import SweepSpec, children

BODY = {"model": "m", "dataset": "d"}


def read(**body: object) -> SweepSpec:
    return parse_spec(SweepSpec, BODY | body, where="sweep")


def problems(**body: object) -> list[str]:
    with pytest.raises(Invalid) as raised:
        read(**body)
    return [str(problem) for problem in raised.value.problems]


def test_every_combination_is_a_training_of_its_own_name_and_other_tools_words_are_taken() -> None:
    spec = read(sweep={"r": "8,16", "lr": ["1e-4", 2e-4]}, name="me/best", replace=True, max_steps=3)

    found = children(spec, "me/best")

    assert [child.values for child in found] == [
        {"lora_r": 8, "learning_rate": 1e-4}, {"lora_r": 8, "learning_rate": 2e-4},
        {"lora_r": 16, "learning_rate": 1e-4}, {"lora_r": 16, "learning_rate": 2e-4},
    ]  # fmt: skip
    assert [child.spec.name for child in found] == ["me/best-1", "me/best-2", "me/best-3", "me/best-4"]
    assert {(child.spec.replace, child.spec.max_steps) for child in found} == {(True, 3)}
    assert found[1].label == "lora_r=8, learning_rate=0.0002"


def test_parameters_of_the_strategy_can_be_swept_and_so_can_the_model() -> None:
    spec = parse_spec(
        SweepSpec, {"dataset": "d", "params": {"a": 1}, "sweep": {"model": ["x", "y"], "params.beta": [0.1]}}
    )

    assert [(child.spec.model, child.spec.params) for child in children(spec, "n")] == [
        ("x", {"a": 1, "beta": 0.1}), ("y", {"a": 1, "beta": 0.1}),
    ]  # fmt: skip


def test_a_list_of_lists_holds_values_that_are_lists() -> None:
    spec = read(sweep={"lora_target": [["q_proj", "v_proj"], "all-linear"]})

    assert [child.spec.lora_target for child in children(spec, "n")] == [("q_proj", "v_proj"), "all-linear"]


def test_what_is_wrong_in_the_spec_and_in_any_value_is_told_at_once_and_once() -> None:
    told = problems(sweep={"lora_r": [0, 8], "seed": [1, -1], "learning_rat": [1]}, max_steps=0)

    assert [text.split(":")[0] for text in told] == ["max_steps", "lora_r", "learning_rat", "seed"]
    assert "did you mean learning_rate" in told[2]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({}, "name at least one field"),
        ({"seed": []}, "seed has no values"),
        ({"name": "a,b"}, "name cannot be swept"),
        ({"lr": [1e-4], "learning_rate": [1e-3]}, "mean the same"),
        ({"seed": list(range(65))}, "these are 65 trainings; a sweep may have 64"),
        ({"lr": "1e-4,0.0001"}, "learning_rate=1e-4 and learning_rate=0.0001 are the same training"),
        (["lr"], "give it as FIELD"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(sweep: object, expected: str) -> None:
    (told,) = problems(sweep=sweep)

    assert expected in told


def outcome(name: str, **metrics: float) -> Outcome:
    return Outcome(
        name=name, job_id=name, state="succeeded", values={"seed": name}, metrics=metrics, seconds=1,
        course=[(step, metrics.get("loss", 1.0) / step) for step in range(1, 5)],
    )  # fmt: skip


def test_the_loss_on_held_out_rows_decides_where_it_was_measured_and_nobody_asks_for_more() -> None:
    both = [outcome("a", train_loss=1, loss=3, accuracy=0.9), outcome("b", train_loss=2, loss=2, accuracy=0.1)]

    assert metric_of(both, None) == "loss"
    assert metric_of(both, "accuracy") == "accuracy"
    assert metric_of(both, "nothing") == "loss"
    assert metric_of([outcome("a", train_loss=1)], None) == "train_loss"
    assert metric_of([outcome("a", loss=float("nan"))], None) is None
    assert [each.name for each in ranked(both, "loss")] == ["b", "a"]
    assert [each.name for each in ranked(both, "accuracy")] == ["a", "b"]


def test_what_has_no_number_comes_last() -> None:
    found = ranked([outcome("none"), outcome("nan", loss=float("nan")), outcome("some", loss=9)], "loss")

    assert [each.name for each in found] == ["some", "none", "nan"]


def test_the_picture_has_a_line_for_each_training_and_names_what_it_shows() -> None:
    drawn = picture([outcome("a", loss=1), outcome("<b>", loss=2)])

    assert drawn.count("<polyline") == 2
    assert "&lt;b&gt;: seed=&lt;b&gt;" in drawn
    assert picture([]) == ""
