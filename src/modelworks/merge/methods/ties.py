"""TIES: keep each model's largest changes, elect a sign for every weight, average the changes that agree with it.

Trim, elect, merge (Yadav et al. 2023, arXiv:2306.01708, Algorithm 1): lambda * sum(w_i d_i) / sum(w_i), where both sums
are over the models whose trimmed change d_i has the elected sign. The weights are an addition to the paper.
"""

from __future__ import annotations

from pydantic import Field

from modelworks.merge.consensus import ThinningParams, largest, thinning


class TiesParams(ThinningParams):
    normalize: bool = Field(True, description="divide by the sum of the weights of the models that agree")


TIES = thinning("ties", TiesParams, largest, elects=True, reads=3, paper="arXiv:2306.01708")
