from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from modelworks.core.errors import Invalid, Problem
from modelworks.core.spec import parse_spec
from modelworks.merge.spec import MergeSpec
from modelworks.search.plan import check
from modelworks.search.space import Axis, axes_of, recipe_at
from modelworks.search.spec import SearchSpec, Values
from shelf import conversations, model_at
from tiny import tiny_llama

RECIPE = MergeSpec(base="base", models=("a", "b"))


def found(recipe: MergeSpec = RECIPE, space: Mapping[str, Values] = MappingProxyType({})) -> dict[str, Axis]:
    problems: list[Problem] = []
    axes = axes_of(recipe, space, problems)
    assert not problems
    return {axis.path: axis for axis in axes}


def test_without_a_word_every_weight_is_searched_from_0_to_one_and_a_half() -> None:
    axes = found()

    assert [(axis.path, axis.start, axis.low, axis.high) for axis in axes.values()] == [
        ("weights.0", 1.0, 0.0, 1.5),
        ("weights.1", 1.0, 0.0, 1.5),
    ]


def test_the_usual_space_is_widened_to_where_the_recipe_stands() -> None:
    axes = found(RECIPE.model_copy(update={"weights": (-0.5, 2.0)}))

    assert (axes["weights.0"].low, axes["weights.0"].high) == (-0.5, 1.5)
    assert (axes["weights.1"].low, axes["weights.1"].high) == (0.0, 2.0)


def test_a_method_without_weights_is_searched_along_its_factor_and_its_share() -> None:
    axes = found(MergeSpec(method="ties_merging", base="base", models=("a", "b")))

    assert {path: (axis.start, axis.low, axis.high) for path, axis in axes.items()} == {
        "params.scaling_coefficient": (1.0, 0.0, 1.5),
        "params.param_value_mask_rate": (0.8, 0.1, 0.9),
    }


def test_a_name_without_a_place_is_one_number_for_each_model_or_a_parameter_of_all() -> None:
    assert list(found(space={"model_params.weight": (0, 1)})) == ["model_params.0.weight", "model_params.1.weight"]
    assert list(found(space={"weight": (0, 1)})) == ["weights.0", "weights.1"]
    assert list(found(space={"weights.1": (0, 1)})) == ["weights.1"]
    assert list(found(space={"scaling_coefficient": (0, 1)})) == ["params.scaling_coefficient"]


def test_a_models_own_weight_is_searched_where_it_stands() -> None:
    recipe = RECIPE.model_copy(update={"weights": (0.3, 0.4), "model_params": ({}, {"weight": 0.9})})

    axes = found(recipe)

    assert {path: axis.start for path, axis in axes.items()} == {
        "model_params.0.weight": 0.3,
        "model_params.1.weight": 0.9,
    }
    assert recipe_at(recipe, {"model_params.0.weight": 0.7}).model_params == ({"weight": 0.7}, {"weight": 0.9})


def test_a_point_changes_what_it_names_and_nothing_else() -> None:
    recipe = MergeSpec(base="base", models=("a", "b"), params={"weight": [0.1, 0.2], "scaling_coefficient": 2.0})

    changed = recipe_at(recipe, {"params.weight.1": 0.9})

    assert changed == recipe.model_copy(update={"params": {"weight": [0.1, 0.9], "scaling_coefficient": 2.0}})
    assert recipe_at(recipe, {}) == recipe
    assert recipe_at(RECIPE, {"weights.1": 0.25}).weights == (1.0, 0.25)


def test_what_is_no_place_or_no_range_is_told() -> None:
    problems: list[Problem] = []

    axes_of(RECIPE, {"weights.7": (0, 1), "weights": (1, 0), "slices.0.params.weight": (0, 1)}, problems)
    assert [str(problem) for problem in problems] == [
        "space.weights.7: is no place in the recipe (e.g. weights, params.density)",
        "space.weights: [1, 0] is no range (e.g. 0:1.5, or a,b,c)",
        "space.slices.0.params.weight: is no place in the recipe (e.g. weights, params.density)",
    ]


def test_a_method_without_numbers_has_nothing_to_search() -> None:
    problems: list[Problem] = []

    axes_of(MergeSpec(method="average", models=("a", "b")), {}, problems)

    assert [problem.what for problem in problems] == ["average has no weights to search"]


def test_ranges_are_written_with_a_colon_and_choices_with_commas() -> None:
    space = {"weights": "0:1.5", "a": "1,2,4", "b": "true,false", "c": "magnitude,random", "d": [0, 1]}

    spec = SearchSpec.model_validate({"recipe": {"models": ["a"]}, "datasets": ["d"], "space": space})

    assert spec.space == {
        "weights": (0, 1.5), "a": (1, 2, 4), "b": (True, False), "c": ("magnitude", "random"), "d": (0, 1),
    }  # fmt: skip


def test_a_range_that_yaml_took_for_a_time_is_told() -> None:
    with pytest.raises(Invalid, match=r"1.5 is no range; write \[0, 1.5\]"):
        parse_spec(SearchSpec, {"recipe": {"models": ["a"]}, "datasets": ["d"], "space": {"weights": 1.5}})


def test_everything_wrong_is_said_at_once_before_any_work(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "base"), "base")
    rows = conversations(tmp_path / "rows", [], [("a", "b")])
    spec = SearchSpec(
        recipe=MergeSpec(base="base", models=("base",), params={"scale": 1}),
        datasets=("rows",), metrics=("perplexty",), space={"weight": (2, 1)},
    )  # fmt: skip

    with pytest.raises(Invalid) as caught:
        check(spec, {"base": base, "rows": rows})

    told = [str(problem) for problem in caught.value.problems]
    assert [text.partition(":")[0] for text in told] == ["metrics", "datasets", "params.scale", "space.weight"]


def test_a_space_whose_ends_the_method_refuses_is_told(tmp_path: Path) -> None:
    base = model_at(tiny_llama(tmp_path / "base"), "base")
    rows = conversations(tmp_path / "rows", [], [("a", "b"), ("c", "d")])
    recipe = MergeSpec(method="ties_merging", base="base", models=("base",))

    with pytest.raises(Invalid, match="param_value_mask_rate"):
        check(
            SearchSpec(recipe=recipe, datasets=("rows",), space={"param_value_mask_rate": (0, 2)}),
            {"base": base, "rows": rows},
        )
    with pytest.raises(Invalid, match=r"params\.densty: unknown key"):
        check(SearchSpec(recipe=recipe, datasets=("rows",), space={"densty": (0, 1)}), {"base": base, "rows": rows})
