from __future__ import annotations

import pytest
import torch

from modelworks.merge.method import Piece
from modelworks.merge.methods.iso_c import combine
from modelworks.merge.spectra import SpectraParams

PLAIN = SpectraParams()


def piece(changes: torch.Tensor) -> Piece:
    rows = changes.reshape(len(changes), -1)
    return Piece("some.weight", tuple(changes.shape[1:]), 0, torch.zeros(rows.shape[1]), deltas=rows)


@pytest.mark.parametrize("shape", [(7, 5), (5, 9), (64, 64), (1, 3)])
def test_equals_the_sum_with_the_mean_of_its_singular_values(shape: tuple[int, int]) -> None:
    changes = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    u, s, v = torch.linalg.svd(changes.double().sum(0), full_matrices=False)

    merged = combine(piece(changes), PLAIN, [PLAIN] * 3)

    torch.testing.assert_close(merged.view(shape), (s.mean() * u @ v).float(), rtol=1e-5, atol=1e-9)


def test_directions_that_nobody_changed_stay_as_they_are() -> None:
    changes = torch.stack([torch.diag(torch.tensor([6.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0, 0.0]))])

    merged = combine(piece(changes), SpectraParams(lambda_=0.5), [PLAIN, SpectraParams(weight=-2)])

    # 6 and -2 become 4 and -4; half of that
    torch.testing.assert_close(merged.view(3, 3), torch.diag(torch.tensor([2.0, -2.0, 0.0])))


def test_what_is_no_matrix_is_averaged_over_the_models_that_are_there() -> None:
    rows = torch.tensor([[1.0, 4.0], [3.0, 2.0], [100.0, 100.0]])

    merged = combine(piece(rows), PLAIN, [PLAIN, PLAIN, SpectraParams(weight=0)])

    assert merged.tolist() == [2.0, 3.0]


def test_a_number_that_is_none_is_passed_on_to_be_told_of() -> None:
    changes = torch.ones(1, 4, 3)
    changes[0, 1, 2] = torch.inf

    assert combine(piece(changes), PLAIN, [PLAIN]).isnan().any()
