"""Average merging: the plain mean, as the merging-eval package computes it in bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelworks.merge.merging_eval import mean
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor


class AverageMergingParams(Params):
    """Average merging has none."""


def combine(tensors: Tensor, _weights: tuple[float, ...], _params: AverageMergingParams) -> Tensor:
    """Average the weights.

    Args:
        tensors: (M, N) bfloat16, one model a row.
    """
    return mean(tensors)


AVERAGE_MERGING = Method(
    "average_merging", AverageMergingParams, combine, space="weights", precision="bfloat16", takes_weights=False,
    paper="arXiv:2203.05482",
)  # fmt: skip
