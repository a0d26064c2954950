from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.extrapolate import EXTRAPOLATE
from pieces import merged


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, [1.0, 2.0]), (0.5, [2.0, 1.0]), (1, [3.0, 0.0]), (1.5, [4.0, -1.0]), (-1, [-1.0, 4.0])]
)
def test_goes_on_from_the_base_through_the_model(alpha: float, expected: list[float]) -> None:
    base, model = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])

    assert merged(EXTRAPOLATE, [model], base, {"alpha": alpha}).tolist() == expected
