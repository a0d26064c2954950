"""DARE-TIES: drop changes at random, enlarge what is kept, and add up those of the elected sign.

Linear DARE (arXiv:2311.03099), but only of what has the sign of sum(w_i kept_i) (arXiv:2306.01708).
"""

from __future__ import annotations

from modelworks.merge.consensus import thinning
from modelworks.merge.dropping import DroppingParams, keep_at_random

DARE_TIES = thinning("dare_ties", DroppingParams, keep_at_random, elects=True, paper="arXiv:2311.03099")
