"""Breadcrumbs-TIES: drop each model's smallest changes and its very largest, and add up those of the elected sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.consensus import OutlierParams, join, restore_l1
from modelworks.merge.method import Method
from modelworks.merge.selection import keep_middle

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


def prepare(look: TensorLook, params: OutlierParams, each: Sequence[OutlierParams]) -> Combine:
    """Breadcrumbs (arXiv:2312.06795), but of each element only what has the sign of sum(w_i kept_i) (arXiv:2306.01708).

    Of each tensor int(gamma * size) changes, the largest, are dropped, and int(density * size) of the next are kept.
    """
    keep = keep_middle(look, [its.density for its in each], [its.gamma for its in each])
    return join(restore_l1(look, keep) if params.rescale else keep, params, each, elects=True)


BREADCRUMBS_TIES = Method(
    "breadcrumbs_ties", OutlierParams, prepare=prepare, space="delta", reads=3, paper="arXiv:2312.06795",
)  # fmt: skip
