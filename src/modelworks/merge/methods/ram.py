"""RAM: keep what one model alone changed whole, and average what several changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class RamParams(Params):
    epsilon: float = Field(1e-5, ge=0, description="a change up to this is none")


def combine(piece: Piece, params: RamParams, _each: Sequence[RamParams]) -> Tensor:
    """Average over those who changed a weight: sum of d_i with |d_i| > epsilon, / their number (arXiv:2601.13572)."""
    import torch

    moved = torch.hardshrink(piece.deltas, params.epsilon)
    count = moved.sign().abs_().sum(0).clamp_(min=1)
    total = torch.zeros_like(count)
    for share in moved.div_(count):
        total += share
    return total


RAM = Method("ram", RamParams, combine, space="delta", paper="arXiv:2601.13572")
