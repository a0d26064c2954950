"""The arithmetic of the merging-eval package, bit for bit: bfloat16 throughout, rounded at every step.

Its methods share it, and masking applies the other four to what it has masked. Each `prepare` function returns what
combines the pieces: the new values for the mean, for the others what is to be added to the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelworks.merge.magnitudes import count_magnitudes, kth_smallest

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, Look, Piece, TensorLook


def mean(models: Tensor) -> Tensor:
    """(M, N) to (N): added up in float32, rounded once."""
    return (_added_up_exactly(models) / len(models)).to(models.dtype)


def scaled_sum(deltas: Tensor, scale: float) -> Tensor:
    """(M, N) to (N): rounded after every addition, and after the product."""
    total = deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    return scale * total


def prepare_ties(look: TensorLook, rate: float, scale: float) -> Combine:
    """TIES with one threshold a model and tensor; a sign that is undecided counts as plus."""
    counted = (piece.deltas for piece in look.pieces())
    threshold = kth_smallest(count_magnitudes(counted), int(look.size * rate)) if look.size else 0

    def combine(piece: Piece) -> Tensor:
        kept = piece.deltas * (piece.deltas.abs() >= threshold)
        agreeing, count = _agreeing(kept, _added_up(kept).sign(), 1.0)
        return scale * (_added_up(agreeing) / count)

    return combine


def prepare_ties_of_whole_model(look: Look, rate: float, scale: float) -> Combine:
    """TIES with one threshold a model; a sign that is undecided is that of the majority of all elements."""
    import torch

    names = [name for name, size in look.sizes.items() if size]
    counts = count_magnitudes(piece.deltas for name in names for piece in look.pieces(name))
    threshold = kth_smallest(counts, int(sum(look.sizes.values()) * rate))

    def elect(piece: Piece) -> tuple[Tensor, Tensor]:
        kept = piece.deltas * (piece.deltas.abs() >= threshold)
        return kept, _added_up_exactly(kept).to(kept.dtype).sign()

    votes = sum(int(elect(piece)[1].sum(dtype=torch.int64)) for name in names for piece in look.pieces(name))
    majority = float((votes > 0) - (votes < 0))

    def combine(piece: Piece) -> Tensor:
        agreeing, count = _agreeing(*elect(piece), majority)
        return scale * (_added_up_exactly(agreeing).to(agreeing.dtype) / count)

    return combine


def _agreeing(kept: Tensor, elected: Tensor, undecided: float) -> tuple[Tensor, Tensor]:
    """What has the elected sign, the rest as zeros; and how many models have, in float32, at least 1.

    Signs and counts are small whole numbers: bfloat16 holds them exactly, and computes faster than masks do.
    """
    signs = elected + (elected == 0).to(elected.dtype) * undecided
    agrees = (kept * signs > 0).to(kept.dtype)
    return kept * agrees, _added_up(agrees).float().clamp(min=1.0)


def _added_up(rows: Tensor) -> Tensor:
    total = rows.new_zeros(rows.shape[1:])
    for row in rows:
        total = total + row
    return total


def _added_up_exactly(rows: Tensor) -> Tensor:
    """In float32, row by row: torch's own sum takes another order in pieces of another size."""
    return _added_up(rows.float())
