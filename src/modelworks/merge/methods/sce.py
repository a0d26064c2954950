"""SCE: select what the models differ in, weigh each model by how far it moved, erase what goes against the majority."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.arrays import bare
from modelworks.merge.derived import Derived
from modelworks.merge.method import Method, Params, Piece
from modelworks.merge.selection import find_cuts

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook

# A tensor whose mean squares add up to less has no weights, as in mergekit.
_LEAST = 1e-6


class SceParams(Params):
    select_topk: float = Field(
        1.0, ge=0, le=1, description="share of the weights that models differ in, those where they do most, to merge"
    )


def prepare(look: TensorLook, params: SceParams, each: Sequence[SceParams]) -> Combine:
    """Merge where the variance is largest: sum of w_i d_i / sum of w_i (Wan et al. 2024, arXiv:2408.07990).

    w_i is the mean of the squares of what is selected of d_i, as a share of all models'; only those d_i count whose
    sign is that of their sum (0 counts as +). As in mergekit, all w_i are equal where the squares add up to < 1e-6.
    """
    import torch

    select = _selection(look, params.select_topk)
    squares = torch.zeros(len(each), dtype=torch.float64)
    for piece in look.pieces():
        for row, wide in enumerate(select(piece).double()):
            squares[row] += wide @ wide
    means = (squares / max(look.size, 1)).float()
    total = float(means.sum())
    weights = (means / total if total >= _LEAST else torch.full_like(means, 1 / len(each))).tolist()

    def combine(piece: Piece) -> Tensor:
        changes = select(piece)
        elected = torch.sum(changes, 0).ge_(0).mul_(2).sub_(1)
        merged, shares = torch.zeros_like(elected), torch.zeros_like(elected)
        for change, weight in zip(changes, weights, strict=True):
            share = torch.mul(change, elected).gt_(0).mul_(weight)
            shares += share
            merged += share.mul_(change)
        return merged.div_(shares.clamp_(min=_LEAST))

    return combine


def _selection(look: TensorLook, share: float) -> Callable[[Piece], Tensor]:
    """What is selected of the changes in a piece, 0 elsewhere."""
    import torch

    if share == 1:
        return lambda piece: piece.deltas
    varied = Derived(look, _variance)
    differing = sum(int(torch.count_nonzero(piece.deltas)) for piece in varied.pieces())
    count = int(torch.tensor(differing) * share)  # in float32, as in mergekit
    if count in {0, look.size}:
        factor = float(count > 0)
        return lambda piece: torch.mul(piece.deltas, factor)
    (cut,) = find_cuts(varied, [(0, look.size - count)], first_above=True)

    def select(piece: Piece) -> Tensor:
        kept = torch.empty_like(piece.base)
        cut.above((bare(_variance(piece)[0]), None), piece.start, kept)
        return torch.mul(piece.deltas, kept.sign_())

    return select


def _variance(piece: Piece) -> Tensor:
    """Of every weight's changes, (1, N): in float64, so that it is the same as mergekit's whatever the order."""
    import torch

    changes = piece.deltas.double()
    mean = changes.sum(0).div_(len(changes))
    total = torch.zeros_like(mean)
    for change in changes:
        change -= mean
        total += change.mul_(change)
    return total.div_(len(changes)).float()[None]


SCE = Method("sce", SceParams, prepare=prepare, space="delta", reads=2, paper="arXiv:2408.07990")
