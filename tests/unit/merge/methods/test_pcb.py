from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.pcb import PcbParams, prepare
from pieces import Looked


def merged(rows: torch.Tensor, *each: PcbParams) -> torch.Tensor:
    look = Looked(rows, torch.zeros(rows.shape[1]), elements=700)
    combine = prepare(look, each[0], each)
    return torch.cat([torch.zeros(0), *map(combine, look.pieces())])


def ranged(rows: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Limit each row to its values at these places in order of size."""
    values = rows.sort(1).values
    return rows.clamp(values[:, int(low), None], values[:, int(high), None])


def onto_one(rows: torch.Tensor) -> torch.Tensor:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - low) / (high - low)


def plain_pcb(rows: torch.Tensor, density: float, weights: torch.Tensor) -> torch.Tensor:
    """On whole tensors, with sorts."""
    size = rows.shape[1]
    magnitudes = ranged(rows.abs(), size * 1e-4, size * (1 - 1e-4) - 1)
    scores = torch.exp(len(rows) * onto_one(magnitudes) ** 2) * torch.tanh(rows * rows.sum(0))
    shares = onto_one(ranged(scores, size * (1 - density), size - 1))
    return (weights[:, None] * rows.sign() * magnitudes * shares).sum(0) / shares.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.4])
def test_equals_the_plain_algorithm(density: float) -> None:
    rows = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)) * 1e-2
    weights = torch.tensor([1.0, -0.5, 2.0])
    each = [PcbParams(density=density, weight=float(weight), lambda_=0.5) for weight in weights]

    found = merged(rows, *each)

    torch.testing.assert_close(found, plain_pcb(rows, density, weights) / 2, rtol=1e-5, atol=1e-9)


def test_a_model_that_learnt_nothing_here_does_not_dilute_the_others() -> None:
    row = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    alone = PcbParams(density=0.5)

    beside_nothing = merged(torch.cat([row, torch.zeros(1, 1000)]), alone, alone)
    beside_silence = merged(torch.cat([row, row]), alone, alone.model_copy(update={"weight": 0.0}))

    assert (beside_nothing != 0).sum() == (beside_silence != 0).sum() == 499
    assert torch.equal(beside_silence, merged(row, alone))


@pytest.mark.parametrize(("rows", "expected"), [([[3.0]], [3.0]), ([[2.0], [4.0]], [3.0]), ([[]], [])])
def test_copes_with_one_weight_and_with_none(rows: list[list[float]], expected: list[float]) -> None:
    assert merged(torch.tensor(rows), *[PcbParams()] * len(rows)).tolist() == expected
