"""Task arithmetic as the merging-eval package computes it: in bfloat16, rounded after every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.merging_eval import scaled_sum
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmeticBf16Params(Params):
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the sum of task vectors")


def combine(deltas: Tensor, _weights: tuple[float, ...], params: TaskArithmeticBf16Params) -> Tensor:
    """Sum task vectors: lambda * (d_1 + ... + d_M) (Ilharco et al. 2023, arXiv:2212.04089).

    Args:
        deltas: (M, N) bfloat16, one task vector a row.
    """
    return scaled_sum(deltas, params.scaling_coefficient)


TASK_ARITHMETIC_BF16 = Method(
    "task_arithmetic_bf16", TaskArithmeticBf16Params, combine, space="delta", precision="bfloat16",
    takes_weights=False, paper="arXiv:2212.04089",
)  # fmt: skip
