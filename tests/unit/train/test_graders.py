from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from modelworks.core.nouns import JsonObject
from modelworks.data.prompts import Prompt
from modelworks.train.graders import Grader, check_grader, check_items, fill, judge_by
from modelworks.train.rewards import RewardFailed

ITEM: JsonObject = {"reference": "the cat sat", "meta": {"level": 2}}
ROW = Prompt((), [], ITEM, 4)


def grader(**fields: Any) -> Any:
    kinds: TypeAdapter[Any] = TypeAdapter(Grader)
    return kinds.validate_python(
        {"name": "g", "input": "{{ sample.output_text }}", "reference": "{{item.reference}}"} | fields
        if fields["type"] != "multi"
        else fields
    )


def checked(operation: str) -> dict[str, Any]:
    return {
        "type": "string_check", "name": "c", "input": "{{sample.output_text}}", "reference": "{{item.reference}}",
        "operation": operation,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "answer", "grade"),
    [
        ("eq", "the cat sat", 1), ("eq", "The cat sat", 0), ("ne", "a cat", 1), ("like", "so the cat sat down", 1),
        ("like", "THE CAT SAT", 0), ("ilike", "THE CAT SAT!", 1),
    ],
)  # fmt: skip
def test_texts_are_compared(operation: str, answer: str, grade: float) -> None:
    assert grader(**checked(operation)).grade(answer, ITEM) == grade


@pytest.mark.parametrize(
    ("metric", "answer", "grade"),
    [
        # "the cat sat": 11 letters, of which "the " and "sat" are in "the sat": 2 * 7 / (11 + 7)
        ("fuzzy_match", "the sat", 14 / 18),
        # 2 of 2 and 2 of 3 words
        ("rouge_1", "sat the", 0.8),
        # none of 1 and of 2 pairs; the longest common subsequence is one word
        ("rouge_2", "sat the", 0), ("rouge_l", "sat the", 0.4), ("rouge_l", "the sat", 0.8),
        # 1 shared of 1 word, against 3 + 2 + 1 n-grams
        ("gleu", "the", 1 / 6),
        # e to the power of 1 - 3 / 1
        ("bleu", "the", pytest.approx(0.1353, abs=1e-4)),
        ("bleu", "the cat sat", 1), ("gleu", "the cat sat", 1), ("bleu", "", 0), ("gleu", "", 0), ("rouge_l", "", 0),
    ],
)  # fmt: skip
def test_texts_are_alike_by_each_metric(metric: str, answer: str, grade: Any) -> None:
    assert grader(type="text_similarity", evaluation_metric=metric).grade(answer, ITEM) == grade


def test_grades_are_put_together_by_arithmetic() -> None:
    parts = {"same": checked("eq"), "within": checked("like")}
    made = grader(type="multi", name="m", graders=parts, calculate_output="0.25 * same + max(within, 0) ** 2 - -1")

    assert judge_by(made)([ROW, ROW], [], ["the cat sat", "so the cat sat"]) == [2.25, 2]
    assert list(check_grader(made)) == []
    parted = grader(type="multi", name="m", graders=parts, calculate_output="within / same")
    with pytest.raises(RewardFailed, match=r"within / same.*division by zero"):
        parted.grade("no", ITEM)


@pytest.mark.parametrize(
    "formula", ["same.__class__", "open('x')", "'a' * 9", "other", "same if same else 1", "1 +", "[1]"]
)
def test_only_arithmetic_is_worked_out(formula: str) -> None:
    made = grader(type="multi", name="m", graders={"same": checked("eq")}, calculate_output=formula)

    (problem,) = check_grader(made)
    assert problem.where == "params.grader.calculate_output"


def test_templates_hold_the_answer_and_the_rows_columns() -> None:
    assert fill("{{item.meta.level}}: {{sample.output_text}} {{item.meta}}", "yes", ITEM) == '2: yes {"level": 2}'
    made = grader(type="string_check", operation="eq", reference="{{item.answer}}")
    with pytest.raises(RewardFailed, match=r"row 4 has no 'item.answer', .*; it has meta, reference"):
        check_items(made, [ROW])
