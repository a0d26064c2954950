from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.sce import SceParams, prepare
from pieces import Looked


def looked(*deltas: list[float]) -> Looked:
    rows = torch.tensor(deltas)
    return Looked(rows, torch.zeros(rows.shape[1]), elements=3)


def merged(look: Looked, **params: float) -> torch.Tensor:
    each = [SceParams(**params)] * len(look.models)
    combine = prepare(look, each[0], each)
    return torch.cat([torch.zeros(0), *map(combine, look.pieces())])


def plain_sce(deltas: torch.Tensor, share: float) -> torch.Tensor:
    """On whole tensors, with a stable sort."""
    if share < 1:
        variance = deltas.var(0, unbiased=False)
        count = int(variance.count_nonzero() * share)
        kept = torch.zeros_like(variance)
        kept[variance.argsort(descending=True, stable=True)[:count]] = 1
        deltas = deltas * kept
    squares = deltas.square().mean(1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else torch.full_like(squares, 1 / len(squares))
    agree = (deltas.sign() == torch.where(deltas.sum(0) >= 0, 1, -1)) * weights[:, None]
    return (deltas * agree).sum(0) / agree.sum(0).clamp(min=1e-6)


def test_weighs_models_by_their_squares_and_erases_the_minority() -> None:
    # Squares add up to 36 and 12, so the weights are 3/4 and 1/4; in the second place the sum is +, so 3 is alone, and
    # in the third 0 is no +.
    found = merged(looked([3.0, -1.0, 4.0, 1.0, 3.0], [1.0, 3.0, 0.0, 1.0, 1.0]))

    assert found.tolist() == [2.5, 3.0, 4.0, 1.0, 2.5]


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.99, 1])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_equals_the_plain_algorithm_also_where_variances_are_equal(share: float, scale: float) -> None:
    dice = torch.Generator().manual_seed(1)
    rows = torch.randint(-6, 7, (3, 500), generator=dice) * scale
    look = Looked(rows, torch.zeros(500), elements=64)

    torch.testing.assert_close(merged(look, select_topk=share), plain_sce(rows, share), rtol=1e-6, atol=0)


def test_what_all_models_agree_on_is_not_selected() -> None:
    found = merged(looked([5.0, 1.0, 0.0], [5.0, 2.0, 0.0]), select_topk=0.9)

    # one of three weights differs, and 0.9 of one is none
    assert found.tolist() == [0.0, 0.0, 0.0]
