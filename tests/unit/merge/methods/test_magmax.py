from __future__ import annotations

from modelworks.merge.methods.magmax import MagMaxParams, combine
from pieces import piece_of

PLAIN = MagMaxParams()


def test_takes_the_change_of_largest_magnitude() -> None:
    piece = piece_of(deltas=[[1.0, -4.0, 0.0], [-3.0, 2.0, 0.0], [2.0, 3.0, 0.0]])

    merged = combine(piece, PLAIN, [PLAIN] * 3)

    # -3 of 1, -3, 2; -4 of -4, 2, 3
    assert merged.tolist() == [-3.0, -4.0, 0.0]


def test_of_two_as_large_takes_the_positive_one_in_any_order() -> None:
    one, other = piece_of(deltas=[[2.0], [-2.0]]), piece_of(deltas=[[-2.0], [2.0]])

    assert combine(one, PLAIN, [PLAIN] * 2).tolist() == combine(other, PLAIN, [PLAIN] * 2).tolist() == [2.0]


def test_weights_count_before_the_changes_are_compared_and_lambda_after() -> None:
    params = MagMaxParams(lambda_=0.5)
    each = [MagMaxParams(weight=-4), params]

    merged = combine(piece_of(deltas=[[1.0, 1.0], [-3.0, 5.0]]), params, each)

    # half of -4 (of -4, -3), and of 5 (of -4, 5)
    assert merged.tolist() == [-2.0, 2.5]
