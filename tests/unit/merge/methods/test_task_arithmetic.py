from __future__ import annotations

from modelworks.merge.methods.task_arithmetic import TaskArithmeticParams, combine
from pieces import piece_of

PIECE = piece_of(deltas=[[1.0, -4.0], [3.0, 2.0]])


def test_sums_what_was_learnt_and_scales_the_sum() -> None:
    params = TaskArithmeticParams(scaling_coefficient=0.5)

    merged = combine(PIECE, params, [params] * 2)

    # half of 4 and of -2
    assert merged.tolist() == [2.0, -1.0]


def test_a_negative_weight_takes_away() -> None:
    merged = combine(PIECE, TaskArithmeticParams(), [TaskArithmeticParams(weight=w) for w in (2, -1)])

    # 2*1 - 3, 2*-4 - 2
    assert merged.tolist() == [-1.0, -10.0]
