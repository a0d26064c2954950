"""Breadcrumbs: drop each model's smallest changes and its very largest, and add up the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.consensus import OutlierParams, join, restore_l1
from modelworks.merge.method import Method
from modelworks.merge.selection import keep_middle

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


def prepare(look: TensorLook, params: OutlierParams, each: Sequence[OutlierParams]) -> Combine:
    """lambda * sum(w_i kept_i) (Davari and Belilovsky 2023, arXiv:2312.06795).

    Of each tensor int(gamma * size) changes, the largest, are dropped, and int(density * size) of the next are kept.
    """
    keep = keep_middle(look, [its.density for its in each], [its.gamma for its in each])
    return join(restore_l1(look, keep) if params.rescale else keep, params, each, elects=False)


BREADCRUMBS = Method(
    "breadcrumbs", OutlierParams, prepare=prepare, space="delta", reads=3, paper="arXiv:2312.06795",
)  # fmt: skip
