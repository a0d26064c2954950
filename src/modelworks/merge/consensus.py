"""Joining thinned-out changes: the parameters, the election of signs and the rescaling that such methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.method import PER_MODEL, Params

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, Piece, TensorLook
    from modelworks.merge.selection import Keep


class ThinningParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on a model's changes; may be negative", json_schema_extra=PER_MODEL
    )
    density: float = Field(
        1.0, ge=0, le=1, description="share of a model's changes that is kept", json_schema_extra=PER_MODEL
    )
    lambda_: FiniteFloat = Field(1.0, alias="lambda", description="factor on the merged changes")
    normalize: bool = Field(False, description="divide by the sum of the weights that take part")
    rescale: bool = Field(False, description="enlarge what is kept, to make up for what is dropped")


class OutlierParams(ThinningParams):
    gamma: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of a model's changes, the largest, that is dropped",
        json_schema_extra=PER_MODEL,
    )


def join(keep: Keep, params: ThinningParams, each: Sequence[ThinningParams], *, elects: bool) -> Combine:
    """Sum the weighted changes that are kept: all of them, or those of the elected sign.

    The sign of sum(w_i d_i) is elected for each element, plus where it is 0 (TIES: Yadav et al. 2023,
    arXiv:2306.01708, Algorithm 1, there with equal weights).
    """
    import torch

    weights = [its.weight for its in each]
    total = torch.tensor(weights, dtype=torch.float32).sum()
    divided = 1.0 if abs(total) < 1e-8 else float(total)

    def combine(piece: Piece) -> Tensor:
        kept = keep(piece)
        for row, weight in zip(kept, weights, strict=True):
            if weight != 1:
                row *= weight
        if elects:
            merged = _elected(kept, weights, params.normalize)
        else:
            merged = _sum(kept)
            if params.normalize:  # by a tensor: a GPU would multiply by a number's reciprocal
                merged /= merged.new_tensor(divided)
        return merged if params.lambda_ == 1 else merged.mul_(params.lambda_)

    return combine


def _sum(rows: Tensor) -> Tensor:
    total = rows[0] + rows[1] if len(rows) > 1 else rows[0].clone()
    for row in rows[2:]:
        total += row
    return total


def _elected(rows: Tensor, weights: Sequence[float], normalize: bool) -> Tensor:
    """The sum of what has the elected sign, divided if asked to by its models' weights, if that is not 0.

    Spoils the rows. Masks are numbers throughout: they are several times faster than truth values.
    """
    import torch

    sign = _sum(rows).ge_(0).mul_(2).sub_(1)
    rows *= sign
    torch.relu_(rows)  # the magnitudes of those that agree, zeros for the rest
    merged = _sum(rows).mul_(sign)
    if not normalize:
        return merged
    rows.sign_()
    for row, weight in zip(rows, weights, strict=True):
        if weight != 1:
            row *= weight
    divisor = _sum(rows)
    divisor += torch.eq(divisor, 0, out=sign)
    return merged.div_(divisor)


def restore_l1(look: TensorLook, keep: Keep) -> Keep:
    """Scale what is kept of each model's changes so that their magnitudes add up to as much as before."""
    import torch

    # Into one place: small results, held while pieces come and go, would scatter over the heap.
    total: Tensor | None = None
    for piece in look.pieces():
        sums = _magnitudes(piece.deltas, keep(piece))
        total = sums if total is None else total.add_(sums)
    if total is None:
        return keep
    before, after = total
    # Where next to nothing was, or is left, there is nothing to restore.
    factors = torch.where((before < 1e-7) | (after < 1e-7), 1.0, before / after).float()[:, None]
    return lambda piece: keep(piece).mul_(factors)


def _magnitudes(*rows: Tensor) -> Tensor:
    import torch

    return torch.stack([each.abs().sum(1, dtype=torch.float64) for each in rows])
