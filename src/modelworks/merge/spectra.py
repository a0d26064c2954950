"""Singular vectors of a matrix by its Gram matrix; only products are made of them in which their signs cancel out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.method import PER_MODEL, Params

if TYPE_CHECKING:
    from torch import Tensor

# Of the largest singular value: so much is left of a low-rank change by a subtraction in float32.
NEGLIGIBLE = 1e-5
_ROWS_AT_ONCE = 4096


class SpectraParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on a task vector; with 0 the model is not there", json_schema_extra=PER_MODEL
    )
    lambda_: FiniteFloat = Field(1.0, alias="lambda", description="factor on the merged task vector")


def is_matrix(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and 0 not in shape


def upright(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """See a tensor as the matrix it is, turned so that it is at least as high as wide."""
    matrix = flat.view(*shape)
    return matrix if shape[0] >= shape[1] else matrix.T


def lay_flat(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `upright`."""
    return (matrix if shape[0] >= shape[1] else matrix.T).reshape(-1)


def right_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose a matrix, best one that is high and narrow.

    Its Gram matrix in float64 is faster than a decomposition in float32, and nearer to the truth; and of a model's
    embedding it is but the square of its width.

    Args:
        matrix: (H, W).

    Returns:
        (W) singular values, the largest first, with 0 for those that are negligible; and (W, W), the right singular
        vectors as columns in the same order. Float64. All NaN if there is a NaN or an infinity in the matrix.
    """
    import torch

    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in torch.split(matrix, _ROWS_AT_ONCE):
        block = rows.double()
        gram += block.T @ block
    if not gram.isfinite().all():
        return gram[0] * torch.nan, gram * torch.nan
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.flip(0).clamp_(min=0).sqrt_()
    return values * (values > NEGLIGIBLE * values[:1]), vectors.flip(1)


def inverse(values: Tensor) -> Tensor:
    """One over each, and 0 for 0."""
    return (values != 0) / (values + (values == 0))


def inverse_root(matrix: Tensor) -> Tensor:
    """The pseudo-inverse of (M^T M)^(1/2), float64: of all with orthogonal columns, M times it is nearest to M."""
    values, vectors = right_vectors(matrix)
    return (vectors * inverse(values)) @ vectors.T


def product(matrix: Tensor, factor: Tensor) -> Tensor:
    """(H, W) times (W, R) float64, as float32."""
    import torch

    return torch.cat([(rows.double() @ factor).float() for rows in torch.split(matrix, _ROWS_AT_ONCE)])
