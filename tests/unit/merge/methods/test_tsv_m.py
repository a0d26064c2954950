from __future__ import annotations

import pytest
import torch

from modelworks.merge.method import Piece
from modelworks.merge.methods.tsv_m import combine
from modelworks.merge.spectra import SpectraParams

PLAIN = SpectraParams()


def plain_tsv_m(changes: torch.Tensor) -> torch.Tensor:
    """The paper's algorithm by decompositions in full."""
    kept = min(changes.shape[1:]) // len(changes)
    parts = [torch.linalg.svd(change.double(), full_matrices=False) for change in changes]
    u = torch.cat([part[0][:, :kept] for part in parts], 1)
    s = torch.cat([part[1][:kept] for part in parts])
    v = torch.cat([part[2][:kept] for part in parts])
    (p, _, q), (x, _, y) = torch.linalg.svd(u, full_matrices=False), torch.linalg.svd(v, full_matrices=False)
    merged: torch.Tensor = p @ q @ s.diag() @ x @ y
    return merged


def changes_of(count: int, *shape: int) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count)) * 1e-3


def piece(changes: torch.Tensor) -> Piece:
    rows = changes.reshape(len(changes), -1)
    return Piece("some.weight", tuple(changes.shape[1:]), 0, torch.zeros(rows.shape[1]), deltas=rows)


@pytest.mark.parametrize("shape", [(7, 5), (5, 9), (64, 64)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_the_algorithm_by_full_decompositions(shape: tuple[int, int], count: int) -> None:
    changes = changes_of(count, *shape)

    merged = combine(piece(changes), PLAIN, [PLAIN] * count)

    torch.testing.assert_close(merged.view(shape), plain_tsv_m(changes).float(), rtol=1e-5, atol=1e-9)


def test_equal_models_give_the_strongest_half_of_their_directions() -> None:
    # Singular values 8, 4, 2, 1 in the directions of the axes.
    change = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))

    merged = combine(piece(torch.stack([change, change])), PLAIN, [PLAIN] * 2)

    torch.testing.assert_close(merged.view(4, 4), torch.diag(torch.tensor([8.0, 4.0, 0.0, 0.0])))


def test_directions_of_models_that_do_not_disturb_each_other_are_added() -> None:
    one, other = torch.diag(torch.tensor([5.0, 0.0])), torch.diag(torch.tensor([0.0, 3.0]))

    merged = combine(piece(torch.stack([one, other])), SpectraParams(lambda_=0.5), [PLAIN, SpectraParams(weight=-1)])

    torch.testing.assert_close(merged.view(2, 2), torch.diag(torch.tensor([2.5, -1.5])))


def test_what_is_no_matrix_is_averaged_over_the_models_that_are_there() -> None:
    rows = torch.tensor([[1.0, 4.0], [3.0, 2.0], [100.0, 100.0]])

    merged = combine(piece(rows), PLAIN, [PLAIN, PLAIN, SpectraParams(weight=0)])

    assert merged.tolist() == [2.0, 3.0]


def test_more_models_than_directions_keep_one_each() -> None:
    merged = combine(piece(torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])), PLAIN, [PLAIN] * 2)

    # Their one row in common is 1 / sqrt(2) for either, by the nearest matrix with orthogonal rows.
    torch.testing.assert_close(merged, torch.tensor([2.0, 3.0]) / 2**0.5)
