"""Linear DELLA: drop changes at random, the smaller the rather, enlarge what is kept, and add it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.consensus import join
from modelworks.merge.dropping import RankedParams, check_chances, keep_by_rank
from modelworks.merge.method import Method

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


def prepare(look: TensorLook, params: RankedParams, each: Sequence[RankedParams]) -> Combine:
    """lambda * sum(w_i kept_i), each d_i / p_i with a chance p_i by its rank in its row, else 0 (arXiv:2406.11617)."""
    return join(keep_by_rank(look, params, each), params, each, elects=False)


DELLA_LINEAR = Method(
    "della_linear", RankedParams, prepare=prepare, space="delta", check=check_chances, paper="arXiv:2406.11617",
)  # fmt: skip
