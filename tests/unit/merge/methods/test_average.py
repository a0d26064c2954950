from __future__ import annotations

from modelworks.merge.method import Params
from modelworks.merge.methods.average import combine
from pieces import piece_of

NONE = Params()


def test_is_the_mean_of_the_models() -> None:
    piece = piece_of([[1.0, -2.0, 0.5], [3.0, 4.0, 0.5], [5.0, 1.0, 0.5]])

    merged = combine(piece, NONE, [NONE] * 3)

    # a third of 9, of 3, and of 1.5
    assert merged.tolist() == [3.0, 1.0, 0.5]


def test_leaves_its_input_alone() -> None:
    piece = piece_of([[1.0], [3.0]])

    combine(piece, NONE, [NONE] * 2)

    assert piece.models.tolist() == [[1.0], [3.0]]
