"""Average: the plain mean of the models' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor


class AverageParams(Params):
    """Average has none."""


def combine(tensors: Tensor, _weights: tuple[float, ...], _params: AverageParams) -> Tensor:
    """Average the weights (Wortsman et al. 2022, arXiv:2203.05482, uniform soup).

    Args:
        tensors: (M, N) float32, one model a row.
    """
    total = tensors[0].clone()
    for values in tensors[1:]:
        total += values
    return total / len(tensors)


AVERAGE = Method("average", AverageParams, combine, space="weights", takes_weights=False, paper="arXiv:2203.05482")
