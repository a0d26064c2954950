"""Linear DARE: drop changes at random, enlarge what is kept, and add it up.

lambda * sum(w_i kept_i), each d_i / density with a chance of density, else 0 (arXiv:2311.03099).
"""

from __future__ import annotations

from modelworks.merge.consensus import thinning
from modelworks.merge.dropping import DroppingParams, keep_at_random

DARE_LINEAR = thinning("dare_linear", DroppingParams, keep_at_random, elects=False, paper="arXiv:2311.03099")
