from __future__ import annotations

import torch

from modelworks.merge.methods.task_arithmetic import TaskArithmeticParams, combine


def test_sums_what_was_learnt_and_scales_the_sum() -> None:
    deltas = torch.tensor([[1.0, -4.0], [3.0, 2.0]])

    merged = combine(deltas, (1.0, 1.0), TaskArithmeticParams(scaling_coefficient=0.5))

    # half of 4 and of -2
    assert merged.tolist() == [2.0, -1.0]


def test_a_negative_weight_takes_away() -> None:
    deltas = torch.tensor([[1.0, -4.0], [3.0, 2.0]])

    merged = combine(deltas, (2.0, -1.0), TaskArithmeticParams())

    # 2*1 - 3, 2*-4 - 2
    assert merged.tolist() == [-1.0, -10.0]
