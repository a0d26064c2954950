from __future__ import annotations

import pytest

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.merge.methods.slerp import SLERP
from modelworks.merge.schedule import depths, resolve, schedule_problems, scheduled_names

T = frozenset({"t"})


@pytest.mark.parametrize(("depth", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.6), (1.0, 0.2)])
def test_a_gradient_is_joined_by_straight_lines(depth: float, value: float) -> None:
    # From 0 to 1 in the first half, down to 0.2 in the second: 1 - 0.8 / 2 at three quarters.
    assert resolve({"t": [0, 1, 0.2]}, T, "x", depth)["t"] == pytest.approx(value)


def test_the_first_filter_that_is_part_of_the_name_holds() -> None:
    values: list[JsonValue] = [
        {"filter": "self_attn", "value": [0, 1]},
        {"filter": "mlp", "value": 0.3},
        {"value": 0.5},
    ]

    found = [
        resolve({"t": values}, T, f"model.layers.0.{part}.weight", 0.5)["t"]
        for part in ("self_attn.q", "mlp.up", "norm")
    ]

    assert found == [0.5, 0.3, 0.5]


def test_a_name_that_no_filter_meets_is_left_out_and_a_list_that_is_meant_as_one_stays() -> None:
    values: JsonObject = {"t": [{"filter": "mlp", "value": 1}], "rates": [0.1, 0.2]}

    assert resolve(values, T, "norm", 0.0) == {"rates": [0.1, 0.2]}


def test_only_numbers_and_choices_can_be_scheduled() -> None:
    assert "t" in scheduled_names(SLERP.params_type)


@pytest.mark.parametrize("value", [[], [1, "x"], {"filter": "a"}, [{"filter": "a"}], [{"value": []}]])
def test_what_is_no_schedule_is_told(value: object) -> None:
    (problem,) = schedule_problems("params", {"t": value}, T)  # type: ignore[dict-item] # it is what a user may write

    assert problem.where == "params.t"


def test_a_single_layer_lies_at_the_end_of_its_slice() -> None:
    assert depths(1) == [1.0]
    assert depths(3) == [0.0, 0.5, 1.0]
