"""LoRA sum: adapters of one base added up exactly into one adapter, whose ranks are the sum of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from modelworks.merge.factors import Factors, Matrix, concatenate
from modelworks.merge.lora import AdapterParams
from modelworks.merge.method import Method


def factor(matrix: Matrix, _params: AdapterParams, each: Sequence[AdapterParams]) -> Factors:
    """Put the factors side by side: sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...].

    Adding the factors themselves would bring in products of one adapter's B with another's A.
    """
    return concatenate(matrix.factors(), [its.weight for its in each])


LORA_ADD = Method("lora_add", AdapterParams, factor=factor, space="delta", adapters_only=True)
