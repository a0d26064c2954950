"""TIES as the merging-eval package computes it: one threshold a tensor, in bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.merging_eval import prepare_ties
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, Look


class TiesMergingParams(Params):
    param_value_mask_rate: float = Field(
        0.8, ge=0, le=1, description="share of each tensor's changes, the smallest, that is dropped"
    )
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the merged task vector")


def prepare(look: Look, _weights: tuple[float, ...], params: TiesMergingParams) -> Combine:
    """Find the thresholds, then merge by sign election (Yadav et al. 2023, arXiv:2306.01708, Algorithm 1).

    Changes equal to the threshold are kept, so more than the share may stay where many are equal.
    """
    return prepare_ties(look, params.param_value_mask_rate, params.scaling_coefficient)


TIES_MERGING = Method(
    "ties_merging", TiesMergingParams, prepare=prepare, space="delta", precision="bfloat16", takes_weights=False,
    paper="arXiv:2306.01708",
)  # fmt: skip
