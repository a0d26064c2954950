"""LoRA folding: one or several adapters put into their base for good, as a full model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.method import PER_MODEL, Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class LoraFoldParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on an adapter's change; may be negative", json_schema_extra=PER_MODEL
    )


def combine(piece: Piece, _params: LoraFoldParams, each: Sequence[LoraFoldParams]) -> Tensor:
    """W + sum_i w_i s_i B_i A_i (Hu et al. 2021, arXiv:2106.09685)."""
    total = piece.deltas[0] * each[0].weight
    for delta, its in zip(piece.deltas[1:], each[1:], strict=True):
        total += delta * its.weight
    return total


LORA_FOLD = Method("lora_fold", LoraFoldParams, combine, space="delta", adapters_only=True, paper="arXiv:2106.09685")
