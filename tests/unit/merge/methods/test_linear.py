from __future__ import annotations

import torch

from modelworks.merge.methods.linear import LINEAR, LinearParams, check_each
from pieces import merged

MODELS = [torch.tensor([1.0, -4.0]), torch.tensor([3.0, 2.0])]


def test_a_mean_by_weight() -> None:
    # three times the first and once the second, by 4
    assert merged(LINEAR, MODELS, weights=(3, 1)).tolist() == [1.5, -2.5]


def test_a_sum_where_it_does_not_normalize() -> None:
    # 2 * 1 - 3 and 2 * -4 - 2
    assert merged(LINEAR, MODELS, params={"normalize": False}, weights=(2, -1)).tolist() == [-1.0, -10.0]


def test_one_model_gives_itself_at_any_weight() -> None:
    assert merged(LINEAR, MODELS[:1], weights=(0.5,)).tolist() == MODELS[0].tolist()


def test_weights_that_add_up_to_nothing_have_no_mean() -> None:
    each = [LinearParams(weight=1), LinearParams(weight=-1)]

    assert "add up to 0" in str(check_each(LinearParams(), each)[0])
    assert not check_each(LinearParams(normalize=False), each)
