from __future__ import annotations

import pytest
import torch

from modelworks.merge.consensus import OutlierParams
from modelworks.merge.method import methods
from modelworks.merge.methods.breadcrumbs import BREADCRUMBS
from modelworks.merge.methods.breadcrumbs_ties import BREADCRUMBS_TIES
from pieces import Looked

LINEAR = ("dare_linear", "della_linear", "breadcrumbs")
ELECTING = ("ties", "dare_ties", "della", "breadcrumbs_ties")


def merged(name: str, deltas: list[list[float]], **params: object) -> list[float]:
    method = methods()[name]
    its = method.params_type.model_validate(params)
    look = Looked(torch.tensor(deltas), torch.zeros(len(deltas[0])))
    combine = method.begin(look, its, [its] * len(deltas))
    return [value for piece in look.pieces() for value in combine(piece).tolist()]


@pytest.mark.parametrize("name", [*LINEAR, *ELECTING])
def test_one_model_kept_whole_is_that_model(name: str) -> None:
    assert merged(name, [[1.0, -2.0, 0.0]]) == [1.0, -2.0, 0.0]


@pytest.mark.parametrize("name", LINEAR)
def test_linear_ones_add_up(name: str) -> None:
    changes = [[1.0, -4.0], [3.0, 2.0]]

    # weight 2: 2 * (1 + 3) and 2 * (-4 + 2); lambda halves; normalized, the weights' sum of 4 divides
    assert merged(name, changes, weight=2) == [8.0, -4.0]
    assert merged(name, changes, weight=2, normalize=True, **{"lambda": 0.5}) == [1.0, -0.5]
    assert merged(name, changes, weight=0, normalize=True) == [0.0, 0.0]


@pytest.mark.parametrize("name", ELECTING)
def test_electing_ones_leave_out_what_disagrees(name: str) -> None:
    assert merged(name, [[1.0, -4.0], [3.0, 2.0]], normalize=False) == [4.0, -4.0]
    assert merged(name, [[1.0, -4.0], [3.0, 2.0]], normalize=True) == [2.0, -4.0]


def test_breadcrumbs_drop_the_largest_and_the_smallest() -> None:
    params = OutlierParams(density=0.5, gamma=0.25)
    look = Looked(torch.tensor([[1.0, -8.0, 3.0, -2.0]]), torch.zeros(4))
    (piece,) = look.pieces()

    # of four: one dropped above, two kept, one dropped below
    assert BREADCRUMBS.begin(look, params, [params])(piece).tolist() == [0, 0, 3, -2]


def test_breadcrumbs_ties_elects_among_what_is_left() -> None:
    params = OutlierParams(density=0.5, gamma=0.25)
    look = Looked(torch.tensor([[1.0, -8.0, 3.0, -2.0], [9.0, 2.0, -4.0, -1.0]]), torch.zeros(4))
    (piece,) = look.pieces()

    # kept: 3, -2 and 2, -4; the sum of 3 and -4 elects minus
    assert BREADCRUMBS_TIES.begin(look, params, [params] * 2)(piece).tolist() == [0, 2, -4, -2]


@pytest.mark.parametrize("params", [{}, {"rescale": True, "normalize": True}])
@pytest.mark.parametrize("name", [*LINEAR, *ELECTING])
def test_pieces_of_any_size_give_the_same(name: str, params: dict[str, bool]) -> None:
    method, dice = methods()[name], torch.Generator().manual_seed(0)
    its = method.params_type(density=0.4, **params)
    models, base = torch.randn(3, 600, generator=dice).bfloat16().float(), torch.zeros(600)

    def in_pieces(rows: int) -> torch.Tensor:
        combine = method.begin(Looked(models, base, 200, whole_shape=(30, 20)), its, [its] * 3)
        return torch.cat([combine(piece) for piece in Looked(models, base, rows * 20, whole_shape=(30, 20)).pieces()])

    whole = in_pieces(30)
    assert 0 < whole.count_nonzero() < 600
    assert torch.equal(in_pieces(1), whole)
    assert torch.equal(in_pieces(7), whole)
