"""Average merging: the plain mean, as the merging-eval package computes it in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.merging_eval import mean
from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


def combine(piece: Piece, _params: Params, _each: Sequence[Params]) -> Tensor:
    """Average the weights."""
    return mean(piece.models)


AVERAGE_MERGING = Method(
    "average_merging", Params, combine, space="weights", precision="bfloat16",
    paper="arXiv:2203.05482",
)  # fmt: skip
