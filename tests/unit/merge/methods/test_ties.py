from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.ties import TIES, TiesParams
from pieces import Looked


def merged(deltas: list[list[float]], *each: TiesParams) -> list[float]:
    look = Looked(torch.tensor(deltas), torch.zeros(len(deltas[0])))
    combine = TIES.begin(look, each[0], each if len(each) > 1 else each * len(deltas))
    return [value for piece in look.pieces() for value in combine(piece).tolist()]


def test_keeps_the_elected_sign_and_averages_those_who_agree() -> None:
    # element 0: both +, mean 2; element 1: -4 outweighs +2, so -4 alone; element 2: trimmed from both
    assert merged([[1.0, -4.0, 0.1], [3.0, 2.0, 0.2]], TiesParams(density=2 / 3)) == [2.0, -4.0, 0.0]


def test_an_undecided_sign_counts_as_plus() -> None:
    assert merged([[1.0], [-1.0]], TiesParams()) == [1.0]


def test_weights_vote_and_divide() -> None:
    each = [TiesParams(weight=2), TiesParams(weight=1), TiesParams(weight=1)]

    # element 0: 2 * 1 against -1.5, so 2 / 2; element 1: 2 * 3 + 3 + 6 over 4
    assert merged([[1.0, 3.0], [-1.5, 3.0], [0.0, 6.0]], *each) == [1.0, 3.75]


def test_without_normalizing_those_that_agree_are_summed_and_lambda_scales() -> None:
    assert merged([[1.0, 1.0], [2.0, -4.0]], TiesParams(normalize=False, lambda_=0.5)) == [1.5, -2.0]


def test_weights_that_cancel_do_not_divide_by_zero() -> None:
    each = [TiesParams(weight=1), TiesParams(weight=-1)]

    # 3 and -1 * -1 agree, the weights' sum is 0: divided by 1
    assert merged([[3.0], [-1.0]], *each) == [4.0]


def test_rescaling_restores_the_sum_of_magnitudes() -> None:
    # 4 is kept of 4 + 1 + 3 = 8
    assert merged([[4.0, -1.0, 3.0]], TiesParams(density=0.34, rescale=True)) == [8.0, 0.0, 0.0]


@pytest.mark.parametrize("normalize", [True, False])
def test_models_that_changed_nothing_and_empty_tensors_give_the_base(normalize: bool) -> None:
    params = TiesParams(density=0.5, normalize=normalize, rescale=True)

    assert merged([[0.0] * 4] * 2, params) == [0.0] * 4
    assert merged([[], []], params) == []


def test_a_model_that_is_not_finite_shows_in_the_result() -> None:
    assert not torch.tensor(merged([[float("nan"), 1.0], [1.0, 1.0]], TiesParams(density=0.5)))[0].isfinite()
