from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artifacts import as_model
from modelworks.core.errors import Invalid
from modelworks.merge.methods.linear import LINEAR
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec
from pieces import merged
from tiny import tiny_llama

MODELS = [torch.tensor([1.0, -4.0]), torch.tensor([3.0, 2.0])]


def test_a_mean_by_weight() -> None:
    # three times the first and once the second, by 4
    assert merged(LINEAR, MODELS, weights=(3, 1)).tolist() == [1.5, -2.5]


def test_a_sum_where_it_does_not_normalize() -> None:
    # 2 * 1 - 3 and 2 * -4 - 2
    assert merged(LINEAR, MODELS, params={"normalize": False}, weights=(2, -1)).tolist() == [-1.0, -10.0]


def test_one_model_gives_itself_at_any_weight() -> None:
    assert merged(LINEAR, MODELS[:1], weights=(0.5,)).tolist() == MODELS[0].tolist()


# The second sum is 5.6e-17 in floating point.
@pytest.mark.parametrize("weights", [(1, -1, 0), (0.1, 0.2, -0.3)])
def test_weights_that_add_up_to_nothing_have_no_mean(tmp_path: Path, weights: tuple[float, ...]) -> None:
    inputs = {name: as_model(tiny_llama(tmp_path / name, seed), name) for seed, name in enumerate("abc")}
    spec = {"method": "linear", "models": ("a", "b", "c"), "weights": weights}

    with pytest.raises(Invalid, match=r"params.weight: the weights add up to 0") as caught:
        make_plan(MergeSpec.model_validate(spec), inputs)

    assert len(caught.value.problems) == 1
    make_plan(MergeSpec.model_validate({**spec, "params": {"normalize": False}}), inputs)
