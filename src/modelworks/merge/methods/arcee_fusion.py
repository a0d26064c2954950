"""Arcee Fusion: take from a model only the changes that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 1 << 18
# Added to probabilities, so that none is 0.
_LEAST = 1e-8


def combine(piece: Piece, _params: Params, _each: Sequence[Params]) -> Tensor:
    """Keep the changes whose score is at least median + 1.5 (third quartile - first quartile), drop the others.

    A score is |e - b| * KL(softmax(e) || softmax(b)), the divergence being that of its row (Arcee AI 2024). Quartiles
    are of all scores, where mergekit draws a million of a larger tensor at random.
    """
    import torch

    model, base = piece.models[0], piece.base
    width = piece.shape[-1] if piece.shape else 1
    scores = torch.sub(model, base).abs_()
    step = max(1, _AT_ONCE // width) * width
    for start in range(0, len(base), step):
        some, of_model, of_base = (each[start : start + step].view(-1, width) for each in (scores, model, base))
        some.mul_(_divergence(of_model, of_base))
    first, median, third = _quartiles(scores)
    kept = (scores >= median + 1.5 * (third - first)).to(scores.dtype)
    return torch.sub(model, base, out=scores).mul_(kept)


def _divergence(model: Tensor, base: Tensor) -> Tensor:
    of_model, of_base = model.softmax(-1).add_(_LEAST), base.softmax(-1).add_(_LEAST)
    return (of_model / of_base).log_().mul_(of_model).sum(-1, keepdim=True)


def _quartiles(scores: Tensor) -> list[Tensor]:
    """Those at (N-1)/4, (N-1)/2 and 3(N-1)/4 in order of size, rounded down."""
    import numpy as np
    import torch

    places = [quarter * (len(scores) - 1) // 4 for quarter in (1, 2, 3)]
    if scores.device.type == "cpu":  # many times faster than torch's, and one by one than all three at once
        return [torch.tensor(np.partition(scores.numpy(), place)[place]) for place in places]
    return [scores.kthvalue(place + 1).values for place in places]


ARCEE_FUSION = Method("arcee_fusion", Params, combine, space="delta", models=(1, 1), whole=True)
