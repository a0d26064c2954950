"""Mixes of models by factors that follow from their inner products: the sphere methods and model stock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import iadd
from typing import TYPE_CHECKING, Literal

from modelworks.core import kernels
from modelworks.merge.arrays import Array, floats, library

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, Piece, TensorLook

# A tensor is one vector; or its rows are, along its last dimension; or its columns, along its first.
Vectors = Literal["tensor", "rows", "columns"]
# From inner products (M, M, *K) to one factor a model (M, *K), both float64; K is (), (R, 1) or (1, C).
Solve = Callable[["Tensor"], "Tensor"]


def prepare_mix(look: TensorLook, solve: Solve, vectors: Vectors = "tensor", *, on_base: bool = False) -> Combine:
    """Mix models by factors that depend on their inner products alone: f_1 x_1 + ... + f_M x_M.

    Inner products and factors are worked out in float64 and the factors then rounded to float32, so that the order of
    summation does not show. (In float32, as mergekit has it, it shifts factors by some 1e-5 where an angle is small.)

    Args:
        on_base: where there is a base, mix the differences from it, and add it.
    """
    vectors = vectors if len(look.shape) > 1 else "tensor"

    def points(piece: Piece) -> Tensor:
        rows = piece.deltas if on_base and piece.has_base else piece.models
        return rows if vectors == "tensor" else rows.view(
            len(rows), -1, look.shape[-1] if vectors == "rows" else look.size // look.shape[0]
        )  # fmt: skip

    def factors(products: Tensor) -> Tensor:
        return solve(products).float()

    known: Tensor | None = None
    if vectors != "rows" and look.size:  # pieces are of whole rows, so those need nothing from the others
        inner = _inner if vectors == "tensor" else _inner_of_columns
        known = factors(reduce(iadd, (inner(points(piece)) for piece in look.pieces())))

    def combine(piece: Piece) -> Tensor:
        rows = points(piece)
        mixed = mix(rows, list(factors(_inner_of_rows(rows)) if known is None else known)).view(-1)
        return mixed.add_(piece.base) if on_base and piece.has_base else mixed

    return combine


def mix(rows: Array, factors: Sequence[Tensor | float]) -> Tensor:
    """Sum the rows of (M, ...), each times its factor."""
    lib = library(rows)
    total: Tensor = rows[0] * factors[0]
    scratch = lib.empty_like(total)
    for row, factor in zip(rows[1:], factors[1:], strict=True):
        total += lib.multiply(row, factor, out=scratch)
    return total


def mix_changes(piece: Piece, weights: Sequence[float]) -> Array:
    """The same of the changes in a piece, (N)."""
    if piece.stored is None:
        return mix(piece.deltas, weights)
    base, rows = piece.stored
    mixed: Array = library(base).empty(len(base), dtype="float32")
    kernels.call("mix", rows, base, *rows.shape, floats(weights, base), mixed)
    return mixed


def slerp_factors(cosine: Tensor, t: float, linear: Tensor) -> Tensor:
    """Factors (2, *K) of two vectors for the point a share `t` along the arc between them; of the line where `linear`.

    sin((1 - t) w) / sin w and sin(t w) / sin w, w being the angle between them.
    """
    import torch

    angle = torch.acos(cosine.masked_fill(linear, 0))
    return torch.stack(
        [torch.where(linear, share, torch.sin(share * angle) / torch.sin(angle)) for share in (1 - t, t)]
    )


def cosines(products: Tensor, least: float) -> Tensor:
    """Cosines of vectors with these inner products (M, M, *K), whose lengths are taken to be at least `least`."""
    lengths = norms(products).clamp(min=least)
    return (products / lengths[:, None] / lengths).clamp(-1, 1)


def norms(products: Tensor) -> Tensor:
    """The lengths (M, *K) of vectors with these inner products (M, M, *K)."""
    return products.diagonal().movedim(-1, 0).sqrt()


def _inner(rows: Tensor) -> Tensor:
    wide = rows.double()
    return (wide @ wide.T).cpu()


def _inner_of_rows(rows: Tensor) -> Tensor:
    import torch

    wide = rows.double()
    return torch.einsum("irc,jrc->ijr", wide, wide)[..., None]


def _inner_of_columns(rows: Tensor) -> Tensor:
    import torch

    wide = rows.double()
    found = wide.new_empty(len(rows), *wide[:, :1].shape)
    product = torch.empty_like(wide[0])
    for i, one in enumerate(wide):
        for j, other in enumerate(wide[: i + 1]):
            found[i, j] = found[j, i] = torch.mul(one, other, out=product).sum(0, keepdim=True)
    return found
