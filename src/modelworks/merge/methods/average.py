"""Average: the plain mean of the models' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


def combine(piece: Piece, _params: Params, _each: Sequence[Params]) -> Tensor:
    """Average the weights (Wortsman et al. 2022, arXiv:2203.05482, uniform soup)."""
    total = piece.models[0] / 1
    for values in piece.models[1:]:
        total += values
    total /= len(piece.models)
    return total


AVERAGE = Method(
    "average", Params, combine, space="weights", in_numpy=lambda _params, _each: True, paper="arXiv:2203.05482"
)
