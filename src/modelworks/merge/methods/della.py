"""DELLA: drop changes at random, the smaller the rather, enlarge the rest, and average those of the elected sign.

Linear DELLA over the elected sign only, divided by the weights that take part (arXiv:2406.11617).
"""

from __future__ import annotations

from pydantic import Field

from modelworks.merge.consensus import thinning
from modelworks.merge.dropping import RankedParams, check_chances, keep_by_rank


class DellaParams(RankedParams):
    normalize: bool = Field(True, description="divide by the sum of the weights of the models that agree")


DELLA = thinning(
    "della", DellaParams, keep_by_rank, elects=True, in_numpy=False, check=check_chances, paper="arXiv:2406.11617"
)
