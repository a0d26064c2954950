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

    total, movers = torch.zeros_like(piece.base), torch.zeros_like(piece.base)
    for delta in piece.deltas:
        moved = torch.hardshrink(delta, params.epsilon)
        total += moved
        movers += moved.sign_().abs_()
    return total.div_(movers.clamp_(min=1))


RAM = Method("ram", RamParams, combine, space="delta", paper="arXiv:2601.13572")
