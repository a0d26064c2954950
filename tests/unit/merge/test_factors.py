from __future__ import annotations

import pytest
import torch

from modelworks.merge import factors
from modelworks.merge.factors import Factors, RankCut, decompose


def decaying(rows: int, columns: int, by: float) -> torch.Tensor:
    """A matrix whose singular values are 1, by, by^2, ..."""
    generator = torch.Generator().manual_seed(0)
    least = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(size, least, generator=generator))[0] for size in (rows, columns))
    made: torch.Tensor = (left * by ** torch.arange(least)) @ right.T
    return made


def best(matrix: torch.Tensor, rank: int) -> float:
    values = torch.linalg.svdvals(matrix.double())
    return float(values[rank:].norm() / values.norm())


@pytest.mark.parametrize("small", [1024, 0], ids=["exact", "sketched"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_the_error_is_the_least_and_is_told(
    monkeypatch: pytest.MonkeyPatch, small: int, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(factors, "_SMALL", small)
    matrix = decaying(*shape, 0.97)

    found = decompose(matrix, RankCut(rank=12), "x")

    assert found.rank == 12
    assert found.error == pytest.approx(best(matrix, 12), rel=0.01)
    assert found.error == pytest.approx(float((matrix - found.left @ found.right).norm() / matrix.norm()), rel=1e-4)


@pytest.mark.parametrize("small", [1024, 0], ids=["exact", "sketched"])
def test_energy_asks_for_as_many_ranks_as_it_takes(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(factors, "_SMALL", small)
    matrix = decaying(500, 450, 0.9)

    found = decompose(matrix, RankCut(energy=0.95), "x")

    # The squares fall by 0.81 a step, so the share of the first r is 1 - 0.81^r, at least 0.95 from r = 15 on.
    assert found.rank == 15
    assert found.error**2 == pytest.approx(0.81**15, rel=1e-3)
    assert decompose(matrix, RankCut(energy=0.95, rank=4), "x").rank == 4


def test_the_same_matrix_gives_the_same_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "_SMALL", 0)
    matrix = decaying(300, 200, 0.95)

    one, other = (decompose(matrix, RankCut(rank=3), "x") for _ in range(2))

    assert torch.equal(one.left, other.left)


def test_factors_that_add_up_to_nothing_stay_one_rank_of_zeros() -> None:
    part, none = Factors(torch.ones(4, 2), torch.ones(2, 3)), Factors(torch.ones(4, 0), torch.ones(0, 3))

    added = factors.concatenate([none, part], [1.0, 0.0])

    assert added.rank
    assert not (added.left @ added.right).any()
    cut = factors.recompress(added, RankCut(rank=1))
    assert (cut.rank, cut.error) == (1, 0.0)
    assert decompose(torch.zeros(4, 3), RankCut(rank=2), "x").error == 0.0
