"""DARE-TIES: drop changes at random, enlarge what is kept, and add up those of the elected sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.consensus import join
from modelworks.merge.dropping import DroppingParams, keep_at_random
from modelworks.merge.method import Method

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


def prepare(look: TensorLook, params: DroppingParams, each: Sequence[DroppingParams]) -> Combine:
    """Linear DARE (arXiv:2311.03099), but only of what has the sign of sum(w_i kept_i) (arXiv:2306.01708)."""
    return join(keep_at_random(look, params, each), params, each, elects=True)


DARE_TIES = Method(
    "dare_ties", DroppingParams, prepare=prepare, space="delta", paper="arXiv:2311.03099",
)  # fmt: skip
