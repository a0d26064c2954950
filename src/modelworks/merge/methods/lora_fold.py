"""LoRA folding: one or several adapters put into their base for good, as a full model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.gram import mix
from modelworks.merge.lora import AdapterParams
from modelworks.merge.method import Method, Piece

if TYPE_CHECKING:
    from torch import Tensor


def combine(piece: Piece, _params: AdapterParams, each: Sequence[AdapterParams]) -> Tensor:
    """W + sum_i w_i s_i B_i A_i (Hu et al. 2021, arXiv:2106.09685)."""
    return mix(piece.deltas, [its.weight for its in each])


LORA_FOLD = Method("lora_fold", AdapterParams, combine, space="delta", adapters_only=True, paper="arXiv:2106.09685")
