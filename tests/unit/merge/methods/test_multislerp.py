from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.multislerp import MULTISLERP, MultislerpParams, check_each
from pieces import merged

DICE = torch.Generator().manual_seed(3)
MODELS = [torch.randn(40, generator=DICE) for _ in range(3)]


def test_is_what_the_way_by_the_tangent_space_gives() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    rows = torch.stack(MODELS).double()
    lengths = rows.norm(dim=1)
    units = rows / lengths[:, None]
    mean = weights @ units
    mean = mean / mean.norm()
    tangent = weights @ (units - (units @ mean)[:, None] * mean)
    expected = (mean * tangent.norm().cos() + tangent) * (weights @ lengths)

    found = merged(MULTISLERP, MODELS, weights=weights.tolist(), elements=7)

    torch.testing.assert_close(found, expected.float())


def test_with_a_base_it_is_of_task_vectors() -> None:
    base = torch.ones(40)

    found = merged(MULTISLERP, [base + each for each in MODELS], base)

    torch.testing.assert_close(found, base + merged(MULTISLERP, MODELS))


def test_one_model_gives_itself_at_any_weight() -> None:
    assert torch.equal(merged(MULTISLERP, MODELS[:1], None, {"normalize_weights": False}, (0.3,)), MODELS[0])


def test_models_that_cancel_each_other_out_are_averaged() -> None:
    x = MODELS[0]
    third = [torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 0.75**0.5]), torch.tensor([-0.5, -(0.75**0.5)])]

    assert merged(MULTISLERP, [x, -x]).tolist() == [0.0] * 40
    assert merged(MULTISLERP, third).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_task_vectors_of_nothing_give_the_base() -> None:
    assert torch.equal(merged(MULTISLERP, MODELS[:1] * 3, MODELS[0]), MODELS[0])


def test_weights_that_add_up_to_nothing_have_no_mean() -> None:
    assert check_each(MultislerpParams(), [MultislerpParams(weight=weight) for weight in (0.1, 0.2, -0.3)])
