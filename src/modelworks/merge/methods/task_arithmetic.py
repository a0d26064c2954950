"""Task arithmetic: add what each model learnt to the base; a negative weight takes it away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.gram import mix_changes
from modelworks.merge.method import PER_MODEL, Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmeticParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on a task vector; may be negative", json_schema_extra=PER_MODEL
    )
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the sum of task vectors")
    normalize: bool = Field(False, description="divide by the sum of the weights, unless it is 0")


def combine(piece: Piece, params: TaskArithmeticParams, each: Sequence[TaskArithmeticParams]) -> Tensor:
    """Sum weighted task vectors: lambda * (w_1 d_1 + ... + w_M d_M) (Ilharco et al. 2023, arXiv:2212.04089)."""
    weights = [its.weight for its in each]
    total: Tensor = mix_changes(piece, weights)
    if params.normalize and abs(sum(weights)) >= 1e-8:
        total /= sum(weights)
    if params.scaling_coefficient != 1:
        total *= params.scaling_coefficient
    return total


TASK_ARITHMETIC = Method(
    "task_arithmetic", TaskArithmeticParams, combine, space="delta", in_numpy=lambda _params, _each: True,
    paper="arXiv:2212.04089",
)  # fmt: skip
