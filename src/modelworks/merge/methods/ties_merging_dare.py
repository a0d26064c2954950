"""TIES as the merging-eval package computes it with one threshold a model; no DARE in it, but for the name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.merging_eval import prepare_ties_of_whole_model
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from modelworks.merge.method import Combine, Look


class TiesMergingDareParams(Params):
    param_value_mask_rate: float = Field(
        0.8, gt=0, le=1, description="share of each model's changes, the smallest, that is dropped"
    )
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the merged task vector")


def prepare(look: Look, params: TiesMergingDareParams, _count: int) -> Combine:
    """Find the thresholds and the majority's sign, then elect signs (Yadav et al. 2023, arXiv:2306.01708)."""
    return prepare_ties_of_whole_model(look, params.param_value_mask_rate, params.scaling_coefficient)


TIES_MERGING_DARE = Method(
    "ties_merging_dare", TiesMergingDareParams, prepare_model=prepare, space="delta", precision="bfloat16",
    reads=3, paper="arXiv:2306.01708",
)  # fmt: skip
