from __future__ import annotations

import math

import pytest
import torch

from modelworks.merge.methods.slerp import SLERP
from pieces import merged

X, Y = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])


@pytest.mark.parametrize(("t", "expected"), [(0, X), (1, Y)])
def test_begins_at_the_first_and_ends_at_the_second(t: float, expected: torch.Tensor) -> None:
    torch.testing.assert_close(merged(SLERP, [X, Y], params={"t": t}), expected)


def test_turns_by_a_share_of_the_angle() -> None:
    # 30 of 90 degrees: sin 60 of the first and sin 30 of the second
    found = merged(SLERP, [X, Y], params={"t": 1 / 3})

    assert found.tolist() == pytest.approx([2 * math.sqrt(3) / 2, 4 / 2])


def test_goes_straight_between_models_that_are_equal_or_opposite() -> None:
    assert merged(SLERP, [X, X], params={"t": 0.25}).tolist() == [2.0, 0.0]
    # 0.75 * 2 - 0.25 * 2
    assert merged(SLERP, [X, -X], params={"t": 0.25}).tolist() == [1.0, 0.0]


def test_a_tensor_of_zeros_counts_as_at_a_right_angle() -> None:
    found = merged(SLERP, [X, 0 * X], params={"t": 0.5})

    assert found.tolist() == pytest.approx([math.sqrt(2), 0])
    assert merged(SLERP, [0 * X, 0 * X]).tolist() == [0.0, 0.0]


def test_lengths_do_not_shrink_as_they_do_in_a_mean() -> None:
    x, y = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1))
    x, y = x / x.norm(), y / y.norm()

    assert float(merged(SLERP, [x, y], elements=700).norm()) == pytest.approx(1, abs=1e-6)
    assert float((x / 2 + y / 2).norm()) < 0.8
