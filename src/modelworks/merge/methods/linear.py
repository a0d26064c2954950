"""Linear: the weighted mean, or the weighted sum, of the models' weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.core.errors import Problem
from modelworks.merge.method import PER_MODEL, Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class LinearParams(Params):
    weight: FiniteFloat = Field(1.0, description="factor on a model; may be negative", json_schema_extra=PER_MODEL)
    normalize: bool = Field(True, description="divide by the sum of the weights")


def check_each(params: LinearParams, each: Sequence[LinearParams]) -> list[Problem]:
    if params.normalize and abs(sum(its.weight for its in each)) < 1e-8:
        return [Problem("weight", "the weights add up to 0, so there is no mean", "change one, or set normalize false")]
    return []


def combine(piece: Piece, params: LinearParams, each: Sequence[LinearParams]) -> Tensor:
    """Average by weight: (w_1 e_1 + ... + w_M e_M) / (w_1 + ... + w_M) (Wortsman et al. 2022, arXiv:2203.05482)."""
    weights = [its.weight for its in each]
    total = piece.models[0] * weights[0]
    for model, weight in zip(piece.models[1:], weights[1:], strict=True):
        if weight == 1:
            total += model
        else:
            # Rounded once, as mergekit does it: rounded twice, the result differs by a step in 1 % of bfloat16 weights.
            total.add_(model, alpha=weight)
    if params.normalize and sum(weights) != 1:
        total /= sum(weights)
    return total


def in_numpy(_params: LinearParams, each: Sequence[LinearParams]) -> bool:
    return all(its.weight == 1 for its in each[1:])


LINEAR = Method(
    "linear", LinearParams, combine, space="weights", check_each=check_each, in_numpy=in_numpy, paper="arXiv:2203.05482"
)
