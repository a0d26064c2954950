from __future__ import annotations

import math
import xml.etree.ElementTree as Xml

import pytest

from modelworks.merge.spec import MergeSpec
from modelworks.search.board import leaderboard, picture
from modelworks.search.goals import front, goals_of, ranked
from modelworks.search.spec import SearchSpec
from modelworks.search.trials import Trial


def spec(*metrics: str, **more: object) -> SearchSpec:
    settings = {"recipe": MergeSpec(models=("a",)), "datasets": ("x", "y"), "metrics": metrics or ("perplexity",)}
    return SearchSpec.model_validate(settings | more)


def trial(number: int, perplexity: float, exact_match: float = 0.0, problem: str = "") -> Trial:
    measured = {name: {"perplexity": perplexity, "exact_match": exact_match} for name in ("x", "y")}
    return Trial(
        number=number, point={"weights.0": 0.5}, measured={} if problem else measured, seconds=1.0, problem=problem
    )


def numbers(trials: list[Trial]) -> list[int]:
    return [each.number for each in trials]


def test_a_goal_is_the_mean_over_the_datasets_that_the_metric_applies_to() -> None:
    perplexity, exact = goals_of(spec("perplexity", "exact_match"))
    measured = {"x": {"perplexity": 2.0, "exact_match": 0.5}, "y": {"perplexity": 8.0}}

    # Of perplexities the geometric mean, so that it is the perplexity of the mean loss.
    assert perplexity.of(measured) == pytest.approx(4.0)
    assert exact.of(measured) == 0.5
    assert perplexity.of({"x": {"perplexity": math.nan}, "y": {"perplexity": 1.0}}) is None
    assert perplexity.of({}) is None


def test_each_dataset_may_be_a_goal_of_its_own() -> None:
    assert [goal.label for goal in goals_of(spec(each_dataset=True))] == ["perplexity on x", "perplexity on y"]


def test_with_one_goal_the_best_comes_first_the_recipe_before_its_equals_and_what_failed_last() -> None:
    trials = [trial(0, 3.0), trial(1, 1.0, problem="NaN"), trial(2, 3.0), trial(3, 2.0)]

    assert numbers(ranked(goals_of(spec()), trials)) == [3, 0, 2, 1]


def test_the_front_is_what_no_other_beats() -> None:
    # Perplexity is better lower, exact match higher: 3 is beaten by 2, 4 repeats 1.
    trials = [trial(0, 4.0, 0.2), trial(1, 2.0, 0.1), trial(2, 3.0, 0.5), trial(3, 3.5, 0.4), trial(4, 2.0, 0.1)]

    assert numbers(front(goals_of(spec("perplexity", "exact_match")), trials)) == [1, 2]


def test_the_winner_is_never_worse_than_the_recipe_in_any_goal() -> None:
    # 1 gains much in one and loses in the other; 2 gains a little in both.
    trials = [trial(0, 4.0, 0.2), trial(1, 1.0, 0.1), trial(2, 3.9, 0.21)]

    assert ranked(goals_of(spec("perplexity", "exact_match")), trials)[0].number == 2


def test_the_leaderboard_tells_each_trial_with_what_it_failed_of() -> None:
    rows = leaderboard(goals_of(spec(datasets=("x",))), [trial(0, 3.0), trial(1, 1.0, problem="values are NaN")])

    assert rows == [
        {"rank": 1, "trial": 0, "goals": {"perplexity": 3.0}, "point": {"weights.0": 0.5}, "seconds": 1.0},
        {"rank": 2, "trial": 1, "goals": {"perplexity": None}, "point": {"weights.0": 0.5}, "seconds": 1.0,
         "problem": "values are NaN"},
    ]  # fmt: skip


@pytest.mark.parametrize("metrics", [("perplexity",), ("perplexity", "exact_match")])
def test_the_picture_has_a_mark_for_every_trial_that_was_measured(metrics: tuple[str, ...]) -> None:
    trials = [trial(0, 4.0, 0.2), trial(1, 2.0, 0.1), trial(2, 1e300, 0.5), trial(3, 1.0, problem="<NaN>")]

    drawn = Xml.fromstring(picture(goals_of(spec(*metrics)), trials))

    titles = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.split(":")[0] for title in titles] == ["trial 0", "trial 1", "trial 2"]
    assert "nan" not in picture(goals_of(spec(*metrics)), trials)


def test_a_picture_of_equal_values_can_be_drawn() -> None:
    assert Xml.fromstring(picture(goals_of(spec()), [trial(0, 1.0), trial(1, 1.0)])) is not None
