from __future__ import annotations

import pytest

from modelworks.app.catalog import LineageNode
from modelworks.cli import render
from modelworks.core.nouns import JsonObject


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (272_600_000, "272.6 MB")])
def test_sizes_are_in_powers_of_a_thousand(count: int, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3720, "1 h 02 min")]
)
def test_durations_are_as_fine_as_they_are_short(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_an_evaluation_has_a_line_a_model_and_leaves_out_what_nobody_measured() -> None:
    result = {
        "columns": ["loss", "exact_match"],
        "rows": [
            {"model": "a", "dataset": "x", "loss": 2.0, "exact_match": 0.5},
            {"model": "a", "dataset": "y", "loss": 3.0, "exact_match": None},
            {"model": "b", "dataset": "x", "loss": 1.0, "exact_match": None},
            {"model": "b", "dataset": "y", "loss": 4.0, "exact_match": None},
        ],
    }

    headings, rows = render.evaluation(result)

    assert headings == ["model", "x\nloss", "x\nexact_match", "y\nloss"]
    assert rows == [["a", 2.0, 0.5, 3.0], ["b", 1.0, None, 4.0]]


def test_a_sweep_has_a_line_a_training_with_what_it_was_chosen_by_first_and_says_what_went_wrong() -> None:
    best = {"values": {"lora_r": 8}, "metrics": {"train_loss": 1.5, "loss": 2.0}, "seconds": 3.0, "state": "succeeded"}
    rest = {"values": {"lora_r": 4}, "metrics": {}, "seconds": None}
    result = {
        "metric": "loss",
        "table": [
            best | {"name": "n-2"},
            rest | {"name": "n-1", "state": "failed", "problem": "no memory"},
            rest | {"name": "n-3", "state": "cancelled"},
        ],
    }

    headings, rows = render.sweep(result)

    assert headings == ["rank", "name", "lora_r", "loss", "train_loss", "seconds", ""]
    assert rows == [
        [1, "n-2", 8, 2.0, 1.5, 3.0, ""],
        [2, "n-1", 4, None, None, None, "no memory"],
        [3, "n-3", 4, None, None, None, "cancelled"],
    ]


def test_a_family_tree_shows_roles_digests_settings_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    base = LineageNode(
        role="base", kind="model", name="tiny", id="1", digest="a" * 64, job_id=None, recipe={"source": "/there"},
        metrics={}, parents=(),
    )  # fmt: skip
    recipe: JsonObject = {"kind": "merge", "spec": {"method": "ties", "params": {"density": 0.2}, "base": "tiny"}}
    merged = LineageNode(
        role="self", kind="model", name="mine", id="2", digest="b" * 64, job_id="j", recipe=recipe,
        metrics={"loss": 1.25}, parents=(base,),
    )  # fmt: skip

    render.show(render.lineage(merged))

    printed = capsys.readouterr().out
    assert "mine  model bbbbbbbbbbbb  job j" in printed
    assert "method=ties, params=density=0.2" in printed
    assert "loss=1.25" in printed
    assert "base tiny  model aaaaaaaaaaaa" in printed
    assert "source=/there" in printed


def test_a_leaderboard_has_a_column_for_every_goal_and_every_place() -> None:
    rows = [
        {"rank": 1, "trial": 1, "goals": {"perplexity": 2.0}, "point": {"weights.0": 0.5}, "seconds": 1.0},
        {"rank": 2, "trial": 0, "goals": {"perplexity": 3.0}, "point": {"weights.0": 1.0}, "seconds": 1.5},
        {"rank": 3, "trial": 2, "goals": {"perplexity": None}, "point": {}, "seconds": 0.1, "problem": "NaN"},
    ]

    headings, lines = render.leaderboard({"goals": [{"name": "perplexity", "better": "lower"}], "leaderboard": rows})

    assert headings == ["rank", "trial", "perplexity", "weights.0", "seconds", ""]
    assert lines == [
        [1, 1, 2.0, 0.5, 1.0, ""],
        [2, 0, 3.0, 1.0, 1.5, "the recipe as it stands"],
        [3, 2, None, None, 0.1, "NaN"],
    ]
