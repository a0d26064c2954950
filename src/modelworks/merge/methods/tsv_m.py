"""TSV-Merge: the strongest directions of every model's changes, made orthogonal to each other before they are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.method import Method, Piece
from modelworks.merge.spectra import (
    SpectraParams,
    inverse,
    inverse_root,
    is_matrix,
    lay_flat,
    product,
    right_vectors,
    upright,
)

if TYPE_CHECKING:
    from torch import Tensor


def combine(piece: Piece, params: SpectraParams, each: Sequence[SpectraParams]) -> Tensor:
    """Merge by task singular vectors (Gargiulo et al. 2024, arXiv:2412.00081).

    For every matrix, embedding and head too: of each w_i d_i = U_i S_i V_i^T the largest 1/M of the singular values,
    but one at least; then lambda * P(U) S P(V)^T, where U, S, V are those of all models side by side and P(U) is the
    matrix with orthogonal columns that is nearest to U. For other tensors lambda * (w_1 d_1 + ... + w_M d_M) / M.
    Where the columns of U depend on each other, as with equal models, P(U) leaves out what none of them spans.
    """
    import torch

    changes = [delta * its.weight for delta, its in zip(piece.deltas, each, strict=True) if its.weight]
    if len(changes) < 2 or not is_matrix(piece.shape):
        total = sum(changes, torch.zeros_like(piece.base))
        return total * (params.lambda_ / max(len(changes), 1))
    kept = max(min(piece.shape) // len(changes), 1)
    left, values, right = [], [], []
    for change in changes:
        matrix = upright(change, piece.shape)
        strengths, vectors = right_vectors(matrix)
        values.append(strengths[:kept])
        right.append(vectors[:, :kept] * (values[-1] != 0))
        left.append(product(matrix, vectors[:, :kept] * inverse(values[-1])))
    u, v = torch.cat(left, 1), torch.cat(right, 1)
    merged = product(u, inverse_root(u) * torch.cat(values) @ inverse_root(v) @ v.T)
    return lay_flat(merged, piece.shape) * params.lambda_


TSV_M = Method("tsv_m", SpectraParams, combine, space="delta", whole=True, paper="arXiv:2412.00081")
