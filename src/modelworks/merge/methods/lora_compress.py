"""LoRA compression: an adapter, or the exact sum of several, cut to a smaller rank with the least error."""

from __future__ import annotations

from collections.abc import Sequence

from modelworks.merge.factors import Factors, Matrix, RankCut, concatenate, recompress
from modelworks.merge.lora import AdapterParams
from modelworks.merge.method import Method


class LoraCompressParams(AdapterParams, RankCut):
    """What to keep of the sum."""


def factor(matrix: Matrix, params: LoraCompressParams, each: Sequence[LoraCompressParams]) -> Factors:
    """Keep the largest singular values of sum_i w_i s_i B_i A_i (Eckart and Young 1936)."""
    return recompress(concatenate(matrix.factors(), [its.weight for its in each]), params)


LORA_COMPRESS = Method(
    "lora_compress", LoraCompressParams, factor=factor, space="delta", adapters_only=True, check=RankCut.problems
)
