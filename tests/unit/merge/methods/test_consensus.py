from __future__ import annotations

import pytest

from modelworks.merge.methods.consensus import ConsensusParams, check, combine
from pieces import piece_of

# The sum is 4, 0, 9. Masks with lambda_mask 0.5:
#   first:  4 >= 0.5*0 yes; 5 >= 0.5*5 yes; 1 >= 0.5*8 no
#   second: 1 >= 0.5*3 no;  2 >= 0.5*2 yes; 4 >= 0.5*5 yes
#   third:  1 >= 0.5*5 no;  3 >= 0.5*3 yes; 4 >= 0.5*5 yes
DELTAS = [[4.0, 5.0, 1.0], [1.0, -2.0, 4.0], [-1.0, -3.0, 4.0]]


@pytest.mark.parametrize(
    ("k", "expected"), [(0, [4.0, 0.0, 9.0]), (1, [4.0, 0.0, 9.0]), (2, [0.0, 0.0, 9.0]), (3, [0.0, 0.0, 0.0])]
)
def test_keeps_the_sum_where_enough_models_hold_on_to_it(k: int, expected: list[float]) -> None:
    params = ConsensusParams(k=k, lambda_mask=0.5)

    merged = combine(piece_of(deltas=DELTAS), params, [params] * 3)

    assert merged.tolist() == expected


def test_a_model_of_weight_zero_has_no_say() -> None:
    params = ConsensusParams(lambda_=2, lambda_mask=0.5)

    merged = combine(piece_of(deltas=[[4.0, 5.0]]), params, [params])
    with_another = combine(
        piece_of(deltas=[[4.0, 5.0], [9.0, 9.0]]), params, [params, params.model_copy(update={"weight": 0.0})]
    )

    # One model agrees with itself: twice 4 and 5.
    assert merged.tolist() == with_another.tolist() == [8.0, 10.0]


def test_refuses_to_wait_for_more_models_than_there_are() -> None:
    assert [problem.where for problem in check(ConsensusParams(k=4), 3)] == ["k"]
    assert not check(ConsensusParams(), 1)
