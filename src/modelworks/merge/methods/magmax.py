"""MagMax: of every weight, the change of the model that moved it most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

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
    import torch

    highest = piece.deltas[0] * each[0].weight
    lowest = highest.clone()
    changes = torch.empty_like(highest)
    for delta, its in zip(piece.deltas[1:], each[1:], strict=True):
        torch.mul(delta, its.weight, out=changes)
        torch.maximum(highest, changes, out=highest)
        torch.minimum(lowest, changes, out=lowest)
    return torch.where(highest >= -lowest, highest, lowest).mul_(params.lambda_)


MAGMAX = Method("magmax", MagMaxParams, combine, space="delta", paper="arXiv:2407.06322")
