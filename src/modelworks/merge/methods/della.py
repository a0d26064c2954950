"""DELLA: drop changes at random, the smaller the rather, enlarge the rest, and average those of the elected sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.consensus import join
from modelworks.merge.dropping import RankedParams, check_chances, keep_by_rank
from modelworks.merge.method import Method

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


class DellaParams(RankedParams):
    normalize: bool = Field(True, description="divide by the sum of the weights of the models that agree")


def prepare(look: TensorLook, params: DellaParams, each: Sequence[DellaParams]) -> Combine:
    """Linear DELLA over the elected sign only, divided by the weights that take part (arXiv:2406.11617)."""
    return join(keep_by_rank(look, params, each), params, each, elects=True)


DELLA = Method(
    "della", DellaParams, prepare=prepare, space="delta", check=check_chances, paper="arXiv:2406.11617",
)  # fmt: skip
