"""PCB: every weight's changes compete, within their model and with the other models; the winners are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.derived import Derived
from modelworks.merge.method import PER_MODEL, Method, Params, Piece
from modelworks.merge.selection import find_cuts

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook

# Of a tensor's magnitudes, at either end.
_OUTLIERS = 1e-4


class PcbParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on what a model wins; with 0 it does not compete", json_schema_extra=PER_MODEL
    )
    density: float = Field(0.1, gt=0, le=1, description="share of each model's changes that do not lose")
    lambda_: FiniteFloat = Field(1.0, alias="lambda", description="factor on the merged task vector")


def prepare(look: TensorLook, params: PcbParams, each: Sequence[PcbParams]) -> Combine:
    """Balance the competition: lambda * sum(s_i w_i d_i) / sum(s_i) (Du et al. 2024, arXiv:2410.02396).

    A change's score is exp(M norm(|d_i|)^2) * tanh(d_i (d_1 + ... + d_M)), norm taking a tensor's least magnitude to 0
    and its largest to 1. s_i is by how much it beats the largest score that lost, as a share of the best. As in the
    authors' code, outliers count as the ten-thousandth magnitude from their end; other than there every tensor competes
    by itself, who works against the others scores 0, and one that is alone at the top has s_i = 1.
    """
    import torch

    active = [row for row, its in enumerate(each) if its.weight]
    weights = [each[row].weight for row in active]
    size, count = look.size, len(active)
    if not size or not count:
        return lambda piece: torch.zeros_like(piece.base)

    def changes_of(piece: Piece) -> Tensor:
        return piece.deltas if count == len(each) else piece.deltas[active]

    def in_order(rows: Callable[[Piece], Tensor], *places: int) -> list[tuple[float, ...]]:
        """Each model's values at these places in order of size, counted from 0."""
        wanted = [(row, place) for place in places for row in range(count)]
        values = [cut.threshold for cut in find_cuts(Derived(look, rows), wanted, first_above=True)]
        return [tuple(values[row::count]) for row in range(count)]

    bounds = in_order(changes_of, int(size * _OUTLIERS), max(int(size * (1 - _OUTLIERS) - 1), 0))

    def scores_of(piece: Piece) -> Tensor:
        changes = changes_of(piece)
        total, scores = changes.sum(0), changes.abs()
        for change, score, (low, high) in zip(changes, scores, bounds, strict=True):
            score.clamp_(low, high).sub_(low).div_(high - low or 1).square_().mul_(count).exp_()
            score *= torch.mul(change, total).tanh_()
        return scores.clamp_(min=0)

    tops = in_order(scores_of, min(int(size * (1 - params.density)), size - 1), size - 1)

    def combine(piece: Piece) -> Tensor:
        changes, scores = changes_of(piece), scores_of(piece)
        merged, shares = torch.zeros_like(piece.base), torch.zeros_like(piece.base)
        for change, score, (low, high), (lost, best), weight in zip(
            changes, scores, bounds, tops, weights, strict=True
        ):
            share = score.sub_(lost).clamp_(min=0).div_(best - lost) if lost < best else score.ge_(best).mul_(best > 0)
            shares += share
            merged += change.sign().mul_(change.abs().clamp_(low, high)).mul_(weight).mul_(share)
        return merged.div_(shares.clamp_(min=1e-12)).mul_(params.lambda_)

    return combine


PCB = Method("pcb", PcbParams, prepare=prepare, space="delta", reads=8, paper="arXiv:2410.02396")
