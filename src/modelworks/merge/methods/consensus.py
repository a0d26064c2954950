"""Consensus merging: add up what was learnt, but only where enough models hold on to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.core.errors import Problem
from modelworks.merge.method import PER_MODEL, Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class ConsensusParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on a task vector; with 0 the model has no say", json_schema_extra=PER_MODEL
    )
    lambda_: FiniteFloat = Field(1.0, alias="lambda", description="factor on the merged task vector")
    lambda_mask: float = Field(
        0.4, ge=0, description="a model holds on to a weight that it moved by this share of what the others did"
    )
    k: int = Field(2, ge=0, description="how many models must hold on to a weight; 1 of a single model")


def check(params: ConsensusParams, count: int) -> list[Problem]:
    if params.k <= max(count, 2):
        return []
    return [Problem("k", f"{params.k} of {count} models can never agree", f"at most {count}")]


def combine(piece: Piece, params: ConsensusParams, each: Sequence[ConsensusParams]) -> Tensor:
    """Mask the sum D = w_1 d_1 + ... + w_M d_M (Wang et al. 2024): lambda * D where k masks are 1.

    A model's mask (TALL) is 1 where |w_i d_i| >= lambda_mask * |D - w_i d_i|.
    """
    import torch

    rows = [(delta, its.weight) for delta, its in zip(piece.deltas, each, strict=True) if its.weight]
    total = torch.zeros_like(piece.base)
    own, others, agree = (torch.zeros_like(total) for _ in range(3))
    for delta, weight in rows:
        total += torch.mul(delta, weight, out=own)
    for delta, weight in rows:
        torch.mul(delta, weight, out=own)
        torch.sub(total, own, out=others).abs_().mul_(params.lambda_mask)
        agree += own.abs_().ge_(others)
    return total.mul_(agree.ge_(min(params.k, len(rows)))).mul_(params.lambda_)


CONSENSUS = Method("consensus", ConsensusParams, combine, space="delta", check=check, paper="arXiv:2405.07813")
