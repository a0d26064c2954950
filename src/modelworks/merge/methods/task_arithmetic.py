"""Task arithmetic: add what each model learnt to the base; a negative weight takes it away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmeticParams(Params):
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the sum of task vectors")


def combine(deltas: Tensor, weights: tuple[float, ...], params: TaskArithmeticParams) -> Tensor:
    """Sum weighted task vectors: lambda * (w_1 d_1 + ... + w_M d_M) (Ilharco et al. 2023, arXiv:2212.04089).

    Args:
        deltas: (M, N) float32, one task vector a row.
    """
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total += delta * weight
    return total * params.scaling_coefficient


TASK_ARITHMETIC = Method("task_arithmetic", TaskArithmeticParams, combine, space="delta", paper="arXiv:2212.04089")
