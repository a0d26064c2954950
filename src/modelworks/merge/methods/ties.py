"""TIES: keep each model's largest changes, elect a sign for every weight, average the changes that agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.consensus import ThinningParams, join, restore_l1
from modelworks.merge.method import Method
from modelworks.merge.selection import keep_largest

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


class TiesParams(ThinningParams):
    normalize: bool = Field(True, description="divide by the sum of the weights of the models that agree")


def prepare(look: TensorLook, params: TiesParams, each: Sequence[TiesParams]) -> Combine:
    """Trim, elect, merge (Yadav et al. 2023, arXiv:2306.01708, Algorithm 1): lambda * sum(w_i d_i) / sum(w_i).

    Both sums are over the models whose trimmed change d_i has the elected sign. int(density * size) changes of a tensor
    are kept, at least one; of equal ones the first. The weights are an addition to the paper.
    """
    keep = keep_largest(look, [its.density for its in each])
    return join(restore_l1(look, keep) if params.rescale else keep, params, each, elects=True)


TIES = Method("ties", TiesParams, prepare=prepare, space="delta", reads=3, paper="arXiv:2306.01708")
