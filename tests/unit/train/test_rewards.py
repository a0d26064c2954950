from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelworks.app.catalog import Catalog
from modelworks.core.config import Settings
from modelworks.core.errors import Invalid, NotFound
from modelworks.core.nouns import AnyArtifact
from modelworks.data.prompts import Prompt
from modelworks.data.record import Message
from modelworks.store.database import open_database
from modelworks.train.rewards import Reward, RewardFailed, check_references, check_rewards, files_named, judge_of

SIX = Prompt((Message("user", "2 * 3?"),), [1, 2], {"reference": "It is 6.", "level": "easy"}, 7)
FILE = """
def reward(prompts, completions, reference, level, **columns):
    assert level == ["easy"] and prompts == [[{"role": "user", "content": "2 * 3?"}]], level
    return [float(turns[0]["content"] == text) for turns, text in zip(completions, reference)]

def none(completions, **columns): return [None for _ in completions]
def few(completions, **columns): return []
def nan(completions, **columns): return [float("nan") for _ in completions]
def word(completions, **columns): return ["good" for _ in completions]
def broken(completions, **columns): return [1 / 0]
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "maths.py").write_text(FILE)
    files = {"maths": tmp_path / "maths.py", "gone": tmp_path / "gone.py"}
    return Catalog(Settings(home=tmp_path, reward_files=files), open_database("sqlite://"))


@pytest.fixture
def inputs(catalog: Catalog) -> dict[str, AnyArtifact]:
    return {"reward:maths": catalog.reward_file("reward:maths")}


def rated(reward: Any, text: str, inputs: dict[str, AnyArtifact] | None = None) -> float:
    (found,) = judge_of(Reward.model_validate(reward), inputs or {})([SIX], [[3]], [text])
    return found


@pytest.mark.parametrize(
    ("reward", "text", "worth"),
    [
        ("exact_match", " It is 6.\n", 1), ("exact_match", "6", 0),
        ("contains", "Sure: it is 6. Yes.", 1), ("contains", "6", 0),
        # the last number of each, with thousands: 6, 6.0; 1,006
        ("number", "2 times 3 makes 6.0!", 1), ("number", "6 or 1,006", 0), ("number", "six", 0),
        ({"name": "regex", "pattern": "^[0-9]+$"}, "12", 1), ({"name": "regex", "pattern": "^[0-9]+$"}, "a12", 0),
        # 4 characters wanted: 4, 6 (off by half), 9 (more than twice)
        ({"name": "length", "length": 4}, "four", 1), ({"name": "length", "length": 4}, "sixsix", 0.5),
        ({"name": "length", "length": 4}, "ninechars", 0),
    ],
)  # fmt: skip
def test_what_can_be_checked_is_rewarded(reward: Any, text: str, worth: float) -> None:
    assert rated(reward, text) == worth


def test_a_function_of_a_file_sees_prompts_answers_and_columns_as_in_trl(inputs: dict[str, AnyArtifact]) -> None:
    assert rated("maths", "It is 6.", inputs) == 1
    assert rated("maths:reward", "7", inputs) == 0
    # it does not apply to this row
    assert rated("maths:none", "7", inputs) is None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("few", r"maths:few failed on answers to rows \[7\]: gave 0 rewards for 1 answers"),
        ("broken", r"maths:broken failed on answers to rows \[7\]: ZeroDivisionError: division by zero"),
        ("nan", "maths:nan gave nan for the answer '6' to row 7; a reward is a finite number"),
        ("word", "maths:word gave 'good' for the answer '6' to row 7"),
    ],
)
def test_a_function_that_fails_is_told_with_its_row(inputs: dict[str, AnyArtifact], function: str, said: str) -> None:
    with pytest.raises(RewardFailed, match=said):
        rated(f"maths:{function}", "6", inputs)


def test_what_is_wrong_with_rewards_is_found_without_running_a_file(
    catalog: Catalog, inputs: dict[str, AnyArtifact], tmp_path: Path
) -> None:
    names = ["maths:rewards", "length", "regex", {"name": "regex", "pattern": "(?=a)"}]
    asked = [Reward.model_validate(name) for name in names]

    said = [str(problem) for problem in check_rewards(asked, inputs)]

    assert "the file has no function rewards (it has reward, none, few, nan, word, broken)" in said[0]
    assert ["needs a length" in said[1], "needs a pattern" in said[2], "no pattern of RE2" in said[3]] == [True] * 3
    (tmp_path / "maths.py").write_text("raise SystemError('no')")
    (changed,) = check_rewards([Reward(name="maths")], inputs)
    assert "no longer what it was" in str(changed)
    again: dict[str, AnyArtifact] = {"reward:maths": catalog.reward_file("reward:maths")}
    with pytest.raises(RewardFailed, match=r"maths.py cannot be imported: SystemError: no"):
        rated("maths", "6", again)
    (tmp_path / "maths.py").write_text("def reward(")
    again = {"reward:maths": catalog.reward_file("reward:maths")}
    assert "is not Python" in str(next(check_rewards([Reward(name="maths")], again)))


def test_only_files_that_the_operator_named_are_read(catalog: Catalog) -> None:
    params = {"rewards": ["number", "maths", {"name": "maths:word", "weight": 2}, "passwd"]}

    assert files_named(params) == ("reward:maths", "reward:passwd")
    assert files_named({"rewards": "maths"}) == ("reward:maths",)
    assert files_named({"rewards": [3, {"nam": "x"}]}) == ()
    with pytest.raises(NotFound, match=r"no reward 'passwd'; there are contains, .*, maths, number"):
        catalog.reward_file("reward:passwd")
    with pytest.raises(NotFound, match=r"gone.py is not there"):
        catalog.reward_file("reward:gone")


def test_a_row_without_an_answer_to_compare_with_is_named() -> None:
    blank = Prompt(SIX.messages, SIX.ids, {}, 9)

    check_references([Reward(name="length", length=3)], [SIX, blank])
    assert judge_of(Reward(name="length", length=3), {})([blank], [[1]], ["six"]) == [1]
    with pytest.raises(Invalid, match="row 9 tells no answer"):
        check_references([Reward(name="number")], [SIX, blank])
