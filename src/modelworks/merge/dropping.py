"""Dropping changes at random, all with the same chance or by their rank, and making up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from modelworks.core.errors import Problem
from modelworks.merge.arrays import Array, is_numpy, library
from modelworks.merge.consensus import ThinningParams, restore_l1
from modelworks.merge.dice import Dice
from modelworks.merge.method import PER_MODEL
from modelworks.merge.selection import sort_rows

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Piece, TensorLook
    from modelworks.merge.selection import Keep


class DroppingParams(ThinningParams):
    rescale: bool = Field(True, description="enlarge what is kept, to make up for what is dropped")
    rescale_norm: Literal["density", "l1"] = Field(
        "density", description="by the chance with which it is kept, or so that magnitudes add up to as much as before"
    )
    seed: int = Field(42, ge=0, lt=1 << 63, description="of the random choice")


class RankedParams(DroppingParams):
    epsilon: float = Field(
        0.15, ge=0, le=0.5, description="how far from density the chances of the smallest and the largest are",
        json_schema_extra=PER_MODEL,
    )  # fmt: skip


def check_chances(params: RankedParams, _count: int) -> list[Problem]:
    low, high = params.density - params.epsilon, params.density + params.epsilon
    if params.density in (0, 1) or (low >= 0 and high <= 1):
        return []
    found = f"chances from {low:g} to {high:g}: density - epsilon and density + epsilon lie between 0 and 1"
    return [Problem("epsilon", found, f"at most {min(params.density, 1 - params.density):g}, or another density")]


def keep_at_random(look: TensorLook, params: DroppingParams, each: Sequence[DroppingParams]) -> Keep:
    """Keep each change with a chance of its model's density (DARE: Yu et al. 2024, arXiv:2311.03099)."""
    densities = [its.density for its in each]
    return _drop(look, params, len(each), lambda piece: piece.column(densities))


def keep_by_rank(look: TensorLook, params: RankedParams, each: Sequence[RankedParams]) -> Keep:
    """Keep each change with a chance between density - epsilon, the smallest of its row, and density + epsilon.

    MagPrune of DELLA (Deep et al. 2024, arXiv:2406.11617). A vector is one row; of a tensor of more than two
    dimensions, all behind the first are one.
    """
    import torch

    if len(look.shape) > 1:
        width = look.size // max(look.shape[0], 1)
        return _drop(look, params, len(each), lambda piece: _chances(piece.deltas, width, each))
    # The pieces of a vector are not whole rows, but it is small.
    pieces = [piece.deltas for piece in look.pieces()]
    chances = _chances(torch.cat(pieces, 1), look.size, each) if pieces else torch.empty(len(each), 0)
    return _drop(look, params, len(each), lambda piece: chances[:, piece.start : piece.start + piece.deltas.shape[1]])


def _drop(look: TensorLook, params: DroppingParams, models: int, chances: Keep) -> Keep:
    dice = Dice(params.seed, look.name, models)
    divides = params.rescale and params.rescale_norm == "density"

    def keep(piece: Piece) -> Array:
        shares = chances(piece)
        if is_numpy(shares) and shares.shape[1] == 1:
            room = piece.empty_rows()
            dice.keep(piece.changes, shares, piece.start, divides, room)
            return room
        kept = piece.deltas * dice.below(shares, piece.start, piece.deltas.shape[1])
        if divides:  # what has no chance is never kept: 0 / anything
            kept /= library(shares).clip(shares, 2.0**-32, None)
        return kept

    return restore_l1(look, keep, models) if params.rescale and not divides else keep


def _chances(deltas: Tensor, width: int, each: Sequence[RankedParams]) -> Tensor:
    """(M, N) of whole rows of `width` elements."""
    import torch

    chances = torch.empty_like(deltas)
    for row, out, its in zip(deltas, chances, each, strict=True):
        if its.density in (0, 1):
            out.fill_(its.density)
            continue
        # From 0 for the smallest to 1 for the largest; an only one has the middle chance. Divided by a tensor: a GPU
        # would multiply by a number's reciprocal.
        share = _ranks(row.view(-1, width)) / row.new_tensor(width - 1) if width > 1 else torch.full_like(row, 0.5)
        torch.add(share.view(-1) * (2 * its.epsilon), its.density - its.epsilon, out=out)
    return chances


def _ranks(rows: Tensor) -> Tensor:
    """Each element's place in its row by magnitude, from 0 on, as float32; of equal ones the first comes first."""
    import torch

    places = torch.arange(rows.shape[1], device=rows.device)
    packed = (rows.abs().view(torch.int32).long() << 32).bitwise_or_(places)
    ordered = sort_rows(packed)
    ordered &= 0xFFFFFFFF
    return torch.empty_like(rows).scatter_(1, ordered, places.to(rows.dtype).expand_as(rows))
