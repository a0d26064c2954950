"""Extrapolate: go on from the base through a model and beyond it; with an alpha below 1, stop on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class ExtrapolateParams(Params):
    alpha: FiniteFloat = Field(1.5, description="how far: 0 is the base, 1 the model, 1.5 half as far again")


def combine(piece: Piece, params: ExtrapolateParams, _each: Sequence[ExtrapolateParams]) -> Tensor:
    """Follow the task vector: b + alpha (e - b) (Zheng et al. 2024, ExPO, arXiv:2404.16792; their alpha is ours - 1).

    An alpha between 0 and 1 interpolates (Wortsman et al. 2022, WiSE-FT, arXiv:2109.01903), a negative one leads away.
    """
    return piece.deltas[0] * params.alpha


EXTRAPOLATE = Method(
    "extrapolate", ExtrapolateParams, combine, space="delta", models=(1, 1), in_numpy=lambda _params, _each: True,
    paper="arXiv:2404.16792",
)  # fmt: skip
