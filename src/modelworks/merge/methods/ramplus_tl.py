"""RAM+ (tensor-local): RAM, and what one model alone changed is strengthened if it shares much with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.gram import mix
from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook


class RamplusTlParams(Params):
    epsilon: float = Field(1e-5, ge=0, description="a change up to this is none")
    r: FiniteFloat = Field(0.1, description="how much to strengthen what a model alone changed")
    alpha: float = Field(0.2, ge=0, description="most that a model's shared changes per own change count for")


def prepare(look: TensorLook, params: RamplusTlParams, each: Sequence[RamplusTlParams]) -> Combine:
    """Average what several models changed, and strengthen what one alone did (arXiv:2601.13572).

    What model i alone changed by more than epsilon is multiplied by 1 + r min(shared_i / own_i, alpha), the numbers of
    weights of this tensor that it changed with others and alone.
    """
    import torch

    own, changed = [0.0] * len(each), [0.0] * len(each)
    for piece in look.pieces():
        movers = torch.hardshrink(piece.deltas, params.epsilon).sign_().abs_()
        alone = _alone(movers.sum(0))
        for place, row in enumerate(movers):
            changed[place] += float(row.sum())
            own[place] += float(row.mul_(alone).sum())
    extra = [
        params.r * min((every - alone) / alone, params.alpha) if alone else 0.0
        for alone, every in zip(own, changed, strict=True)
    ]

    def combine(piece: Piece) -> Tensor:
        moved = torch.hardshrink(piece.deltas, params.epsilon)
        movers = moved.sign().abs_()
        count = movers.sum(0)
        strength = mix(movers, extra).mul_(_alone(count)).add_(1)
        total = torch.zeros_like(count)
        for share in moved.div_(count.clamp_(min=1)):
            total += share
        return total.mul_(strength)

    return combine


def _alone(count: Tensor) -> Tensor:
    """1 where one model changed a weight, 0 where several did, anything where none; comparing would be slower."""
    return (2 - count).clamp_(min=0)


RAMPLUS_TL = Method("ramplus_tl", RamplusTlParams, prepare=prepare, space="delta", reads=2, paper="arXiv:2601.13572")
