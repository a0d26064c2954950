"""Iso-C: add up what was learnt, and give every direction in which a matrix changed the same strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.merge.gram import mix
from modelworks.merge.method import Method, Piece
from modelworks.merge.spectra import SpectraParams, inverse, is_matrix, lay_flat, product, right_vectors, upright

if TYPE_CHECKING:
    from torch import Tensor


def combine(piece: Piece, params: SpectraParams, each: Sequence[SpectraParams]) -> Tensor:
    """Make the spectrum of the sum of weighted task vectors even (Marczak et al. 2025, arXiv:2502.04959).

    For every matrix, embedding and head too: lambda * mean(S) * U V^T, where U S V^T = w_1 d_1 + ... + w_M d_M; for
    other tensors lambda * (w_1 d_1 + ... + w_M d_M) / M. Directions in which nothing changed, as there are many with
    adapters, stay as they are and do not count in the mean: where the authors' code has as many directions as the
    matrix has rows or columns, some of them would be noise.
    """
    weights = [its.weight for its in each]
    total = mix(piece.deltas, weights)
    if not is_matrix(piece.shape):
        return total.mul_(params.lambda_ / max(sum(weight != 0 for weight in weights), 1))
    matrix = upright(total, piece.shape)
    values, vectors = right_vectors(matrix)
    strength = values.sum() / (values != 0).sum().clamp(min=1)
    even = product(matrix, (vectors * (inverse(values) * strength)) @ vectors.T)
    return lay_flat(even, piece.shape) * params.lambda_


ISO_C = Method("iso_c", SpectraParams, combine, space="delta", whole=True, paper="arXiv:2502.04959")
