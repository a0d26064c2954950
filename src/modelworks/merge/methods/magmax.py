"""MagMax: of every weight, the change of the model that moved it most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.arrays import library
from modelworks.merge.method import PER_MODEL, Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class MagMaxParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on a task vector before it is compared", json_schema_extra=PER_MODEL
    )
    lambda_: FiniteFloat = Field(1.0, alias="lambda", description="factor on the merged task vector")


def combine(piece: Piece, params: MagMaxParams, each: Sequence[MagMaxParams]) -> Tensor:
    """Take the change of largest magnitude: lambda * w_i d_i, i = argmax |w_i d_i| (Marczak et al. 2024).

    Of two that are equally far from 0 on either side, it is the positive one, in whatever order the models come.
    """
    lib = library(piece.deltas)
    highest = lowest = piece.deltas[0] * each[0].weight
    for delta, its in zip(piece.deltas[1:], each[1:], strict=True):
        changes = delta * its.weight
        highest, lowest = lib.maximum(highest, changes), lib.minimum(lowest, changes)
    taken: Tensor = lib.where(highest >= -lowest, highest, lowest) * params.lambda_
    return taken


MAGMAX = Method(
    "magmax", MagMaxParams, combine, space="delta", in_numpy=lambda _params, _each: True, paper="arXiv:2407.06322"
)
