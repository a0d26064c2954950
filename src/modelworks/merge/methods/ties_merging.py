"""TIES as the merging-eval package computes it: one threshold a tensor, in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.merging_eval import prepare_ties
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, TensorLook


class TiesMergingParams(Params):
    param_value_mask_rate: float = Field(
        0.8, ge=0, le=1, description="share of each tensor's changes, the smallest, that is dropped"
    )
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the merged task vector")


def prepare(look: TensorLook, params: TiesMergingParams, _each: Sequence[TiesMergingParams]) -> Combine:
    """Find the threshold of each model, then merge by sign election (Yadav et al. 2023, arXiv:2306.01708, Algorithm 1).

    Changes equal to the threshold are kept, so more than the share may stay where many are equal.
    """
    return prepare_ties(look, params.param_value_mask_rate, params.scaling_coefficient)


TIES_MERGING = Method(
    "ties_merging", TiesMergingParams, prepare=prepare, space="delta", precision="bfloat16", reads=2,
    paper="arXiv:2306.01708",
)  # fmt: skip
