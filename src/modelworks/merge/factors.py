"""Changes of a matrix as thin factors: added exactly, cut to a smaller rank, or found in a full matrix."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, PositiveInt

from modelworks.core.errors import Problem
from modelworks.core.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor  # noqa: TC004  a dataclass does not evaluate its annotations; torch must not load here

# Directions sampled beyond those wanted, and power iterations (Halko et al. 2011, arXiv:0909.4061, sections 4.2, 4.5).
_OVERSAMPLING, _POWERS = 32, 4
# Below this size, or where at least this share of the directions is wanted, an exact decomposition costs no more.
_SMALL, _LARGE_SHARE = 1024, 0.25


@dataclass(frozen=True, slots=True)
class Factors:
    """A change `left @ right` of one matrix: (rows, r) and (r, columns), float32.

    `error` is the Frobenius norm of what it leaves out, relative to that of what it stands for.
    """

    left: Tensor
    right: Tensor
    error: float = 0.0

    @property
    def rank(self) -> int:
        return self.left.shape[1]


class Matrix(Protocol):
    """One matrix of the base, and what the models change in it."""

    @property
    def name(self) -> str: ...

    def factors(self) -> Sequence[Factors]:
        """Those of every model, which must be adapters; of rank 0 where one does not change the matrix."""

    def delta(self, place: int) -> Tensor:
        """The whole change by one model, in the matrix's shape, float32."""


class RankCut(Spec):
    """How much to keep."""

    rank: PositiveInt | None = Field(None, description="at most so many directions a matrix")
    energy: float = Field(1.0, gt=0, le=1, description="keep no more than reach this share of the squared change")

    def chosen(self, squares: Tensor, total: float) -> int:
        """How many of the descending squared singular values to keep; always one, for a rank of 0 is no LoRA."""
        import torch

        # What rounding alone has made is not kept.
        there = int((squares > total * 1e-14).sum())
        reached = int(torch.searchsorted(squares.cumsum(0), self.energy * total)) + 1 if self.energy < 1 else there
        return max(1, min(reached, there, self.rank or there, len(squares)))

    @staticmethod
    def problems(params: RankCut, _count: int) -> Sequence[Problem]:
        if params.rank is None and params.energy == 1:
            return [Problem("rank", "is missing, and so is energy", "e.g. rank: 16, or energy: 0.95, or both")]
        return []


def concatenate(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted sum of changes, exactly: their factors side by side, so that ranks add up."""
    import torch

    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    # A sum of nothing is a factor of zeros, for a rank of 0 is no LoRA.
    used = used or [(max(parts, key=lambda part: part.rank), 0.0)]
    return Factors(
        torch.cat([part.left * weight for part, weight in used], 1), torch.cat([part.right for part, _ in used])
    )


def recompress(factors: Factors, cut: RankCut) -> Factors:
    """The best approximation of a smaller rank (Eckart and Young 1936), without ever making the product.

    With left = Q1 R1 and right' = Q2 R2, the singular values of the product are those of the small R1 R2'.
    """
    import torch

    left_basis, left = torch.linalg.qr(factors.left.double())
    right_basis, right = torch.linalg.qr(factors.right.double().T)
    inner, values, outer = torch.linalg.svd(left @ right.T, full_matrices=False)
    squares = values.square()
    total, rank = float(squares.sum()), cut.chosen(squares, float(squares.sum()))
    error = (float(squares[rank:].sum()) / total) ** 0.5 if total else 0.0
    return _balanced(left_basis @ inner, values, outer @ right_basis.T, rank, error)


def decompose(delta: Tensor, cut: RankCut, name: str) -> Factors:
    """The best approximation of a full matrix, found in a random sketch of it where that is cheaper.

    Args:
        name: the seed; the same matrix of the same name gives the same factors.
    """
    import torch

    total = float(delta.double().square().sum())
    least = min(delta.shape)
    if not total:
        return Factors(delta.new_zeros(delta.shape[0], 1), delta.new_zeros(1, delta.shape[1]))
    width = (cut.rank or 64) + _OVERSAMPLING
    while least > _SMALL and width < _LARGE_SHARE * least:
        basis = _range(delta, width, name)
        inner, values, outer = torch.linalg.svd(basis.T @ delta, full_matrices=False)
        squares = values.double().square()
        kept = width - _OVERSAMPLING
        if cut.rank is not None or float(squares[:kept].sum()) >= cut.energy * total:
            inner = basis @ inner
            break
        width *= 2
    else:
        inner, values, outer = torch.linalg.svd(delta, full_matrices=False)
    found = _balanced(inner, values, outer, cut.chosen(values.double().square(), total))
    # Measured, for a difference of two sums of squares would drown a small error in rounding.
    return replace(found, error=float((delta - found.left @ found.right).double().norm()) / total**0.5)


def _range(delta: Tensor, width: int, name: str) -> Tensor:
    """An orthonormal basis (rows, width) of nearly all that the matrix reaches (Halko et al., algorithm 4.4)."""
    import torch

    drawn = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    basis = delta @ torch.randn(delta.shape[1], width, generator=drawn).to(delta.device)
    for _ in range(_POWERS):
        basis = torch.linalg.qr(delta.T @ torch.linalg.qr(basis)[0])[0]
        basis = delta @ basis
    found: Tensor = torch.linalg.qr(basis)[0]
    return found


def _balanced(left: Tensor, values: Tensor, right: Tensor, rank: int, error: float = 0.0) -> Factors:
    roots = values[:rank].sqrt()
    return Factors((left[:, :rank] * roots).float(), (right[:rank] * roots[:, None]).float(), error)
