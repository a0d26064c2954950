"""Linear DELLA: drop changes at random, the smaller the rather, enlarge what is kept, and add it up.

lambda * sum(w_i kept_i), each d_i / p_i with a chance p_i by its rank in its row, else 0 (arXiv:2406.11617).
"""

from __future__ import annotations

from modelworks.merge.consensus import thinning
from modelworks.merge.dropping import RankedParams, check_chances, keep_by_rank

DELLA_LINEAR = thinning(
    "della_linear", RankedParams, keep_by_rank, elects=False, in_numpy=False, check=check_chances,
    paper="arXiv:2406.11617",
)  # fmt: skip
