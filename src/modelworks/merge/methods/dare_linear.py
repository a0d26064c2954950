"""Linear DARE: drop changes at random, enlarge what is kept, and add it up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.consensus import join
from modelworks.merge.dropping import DroppingParams, keep_at_random
from modelworks.merge.method import Method

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


def prepare(look: TensorLook, params: DroppingParams, each: Sequence[DroppingParams]) -> Combine:
    """lambda * sum(w_i kept_i), each d_i / density with a chance of density, else 0 (arXiv:2311.03099)."""
    return join(keep_at_random(look, params, each), params, each, elects=False)


DARE_LINEAR = Method(
    "dare_linear", DroppingParams, prepare=prepare, space="delta", paper="arXiv:2311.03099",
)  # fmt: skip
