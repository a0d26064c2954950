from __future__ import annotations

from pathlib import Path

from modelworks.merge.spec import MergeSpec
from modelworks.search.goals import goals_of
from modelworks.search.sampling import suggest
from modelworks.search.space import Axis
from modelworks.search.spec import SearchSpec
from modelworks.search.trials import Trial, TrialLog

GOALS = goals_of(SearchSpec(recipe=MergeSpec(models=("a",)), datasets=("x",)))
AXES = [
    Axis("weights.0", 1.0, 0.0, 1.5),
    Axis("params.k", 3, 1, 9, whole=True),
    Axis("params.normalize", False, choices=(False, True)),
]


def trial(number: int, point: dict[str, object] | None = None, perplexity: float = 2.0) -> Trial:
    return Trial(
        number=number, point=point or {}, measured={"x": {"perplexity": perplexity}}, seconds=0.5  # type: ignore[arg-type] # JSON
    )  # fmt: skip


def searched(count: int, trials: list[Trial]) -> list[Trial]:
    """Go on to `count` trials, looking for weight 0.7 and k 5, normalised."""
    while len(trials) < count:
        point = suggest(AXES, GOALS, trials, seed=3) if trials else {}
        values = {axis.path: point.get(axis.path, axis.start) for axis in AXES}
        weight, k = (float(str(values[path])) for path in ("weights.0", "params.k"))
        far = (weight - 0.7) ** 2 + (k - 5) ** 2 / 16 + (not values["params.normalize"])
        trials.append(trial(len(trials), point, 1 + far))  # type: ignore[arg-type] # JSON
    return trials


def test_a_log_gives_back_what_was_noted_but_not_what_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path, "this")
    log.append(trial(0))
    log.append(trial(1, {"weights.0": 0.1}))
    with path.open("a") as file:
        file.write('{"number": 2, "po')

    again = TrialLog(path, "this")
    again.append(trial(2))

    assert again.trials == [trial(0), trial(1, {"weights.0": 0.1}), trial(2)]
    assert TrialLog(path, "this").trials == again.trials


def test_the_log_of_another_search_is_dropped(tmp_path: Path) -> None:
    TrialLog(tmp_path / "trials.jsonl", "this").append(trial(0))

    assert TrialLog(tmp_path / "trials.jsonl", "other").trials == []


def test_what_comes_next_depends_on_what_was_found_alone() -> None:
    whole = searched(12, [])

    assert searched(12, whole[:7]) == whole


def test_points_lie_in_the_space_and_come_nearer() -> None:
    trials = searched(40, [])

    for each in trials[1:]:
        weight, k, normalize = each.point.values()
        assert isinstance(weight, float)
        assert isinstance(k, int)
        assert 0 <= weight <= 1.5
        assert 1 <= k <= 9
        assert normalize in (False, True)
    assert min(each.measured["x"]["perplexity"] for each in trials) < 1.02


def test_what_failed_and_what_lies_outside_is_passed_over() -> None:
    axes = [Axis("weights.0", 7.0, 0.0, 1.5)]
    failed = Trial(number=1, point={"weights.0": 0.3}, seconds=1.0, problem="NaN")

    point = suggest(axes, GOALS, [trial(0), failed], seed=0)

    assert 0 <= float(str(point["weights.0"])) <= 1.5
