from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.karcher import KARCHER
from pieces import merged

DICE = torch.Generator().manual_seed(5)
MODELS = [torch.randn(30, generator=DICE) * scale for scale in (1, 2, 4)]


def test_angles_pull_equally_from_all_sides() -> None:
    found = merged(KARCHER, MODELS, params={"max_iter": 100, "tol": 1e-9}, elements=11).double()

    lengths = torch.stack(MODELS).double().norm(dim=1)
    units = torch.stack(MODELS).double() / lengths[:, None]
    mean = found / found.norm()
    cosine = units @ mean
    towards = units - cosine[:, None] * mean
    pull = (towards / towards.norm(dim=1, keepdim=True) * cosine.acos()[:, None]).sum(0)
    assert float(pull.norm()) < 1e-5
    assert float(found.norm()) == pytest.approx(float(lengths.mean()), rel=1e-6)


def test_of_two_models_it_is_half_way_along_the_arc() -> None:
    # at a right angle, of lengths 1 and 3: 45 degrees, length 2
    found = merged(KARCHER, [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])])

    assert found.tolist() == pytest.approx([2**0.5, 2**0.5])


def test_one_model_and_equal_models_give_themselves() -> None:
    torch.testing.assert_close(merged(KARCHER, MODELS[:1]), MODELS[0])
    torch.testing.assert_close(merged(KARCHER, MODELS[:1] * 3), MODELS[0])


def test_of_opposite_models_it_is_the_first() -> None:
    torch.testing.assert_close(merged(KARCHER, [MODELS[0], -MODELS[0]]), MODELS[0])


def test_zeros_count_for_the_length_alone() -> None:
    nothing = torch.zeros(30)

    torch.testing.assert_close(merged(KARCHER, [nothing, MODELS[0]]), MODELS[0] / 2)
    assert torch.equal(merged(KARCHER, [nothing, nothing]), nothing)
