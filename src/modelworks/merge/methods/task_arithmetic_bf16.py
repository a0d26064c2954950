"""Task arithmetic as the merging-eval package computes it: in bfloat16, rounded after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.merging_eval import scaled_sum
from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmeticBf16Params(Params):
    scaling_coefficient: FiniteFloat = Field(1.0, description="lambda: factor on the sum of task vectors")


def combine(piece: Piece, params: TaskArithmeticBf16Params, _each: Sequence[TaskArithmeticBf16Params]) -> Tensor:
    """Sum task vectors: lambda * (d_1 + ... + d_M) (Ilharco et al. 2023, arXiv:2212.04089)."""
    return scaled_sum(piece.deltas, params.scaling_coefficient)


TASK_ARITHMETIC_BF16 = Method(
    "task_arithmetic_bf16", TaskArithmeticBf16Params, combine, space="delta", precision="bfloat16",
    paper="arXiv:2212.04089",
)  # fmt: skip
