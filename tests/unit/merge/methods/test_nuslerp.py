from __future__ import annotations

import math

import pytest
import torch

from modelworks.merge.methods.nuslerp import NUSLERP
from pieces import merged

HALF = math.sqrt(0.5)
X = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
Y = torch.tensor([[0.0, 2.0], [1.0, 0.0]])


def test_each_row_turns_by_its_own_angle() -> None:
    found = merged(NUSLERP, [X, Y], params={"nuslerp_flatten": False})

    # the first rows are at a right angle, the second are equal
    torch.testing.assert_close(found, torch.tensor([[2 * HALF, 2 * HALF], [1.0, 0.0]]))


def test_each_column_turns_by_its_own_angle() -> None:
    found = merged(NUSLERP, [X.T, Y.T], params={"nuslerp_flatten": False, "nuslerp_row_wise": True}, elements=2)

    torch.testing.assert_close(found, torch.tensor([[2 * HALF, 1.0], [2 * HALF, 0.0]]))


def test_with_a_base_task_vectors_turn() -> None:
    base = torch.full((2, 2), 5.0)

    found = merged(NUSLERP, [X + base, Y + base], base, weights=(2, 1))

    torch.testing.assert_close(found, base + merged(NUSLERP, [X, Y], weights=(2, 1)))


def test_the_share_of_the_second_is_its_weight() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])

    # 1 / (2 + 1) of 90 degrees
    assert merged(NUSLERP, [x, y], weights=(2, 1)).tolist() == pytest.approx([math.sqrt(3) / 2, 0.5])
    # weights that cancel out say nothing
    assert merged(NUSLERP, [x, y], weights=(1, -1)).tolist() == pytest.approx([HALF, HALF])


@pytest.mark.parametrize("flatten", [True, False])
def test_equal_opposite_and_empty_vectors_have_an_answer(flatten: bool) -> None:
    def found(x: torch.Tensor, y: torch.Tensor) -> list[list[float]]:
        return merged(NUSLERP, [x, y], params={"nuslerp_flatten": flatten}, weights=(3, 1)).tolist()

    torch.testing.assert_close(torch.tensor(found(X, X)), X)
    # 0.75 X - 0.25 X
    assert found(X, -X) == (X / 2).tolist()
    assert found(0 * X, 0 * X) == (0 * X).tolist()
