from __future__ import annotations

import torch

from modelworks.merge.methods.average import AverageParams, combine


def test_is_the_mean_of_the_models() -> None:
    tensors = torch.tensor([[1.0, -2.0, 0.5], [3.0, 4.0, 0.5], [5.0, 1.0, 0.5]])

    merged = combine(tensors, (1.0, 1.0, 1.0), AverageParams())

    # a third of 9, of 3, and of 1.5
    assert merged.tolist() == [3.0, 1.0, 0.5]


def test_leaves_its_input_alone() -> None:
    tensors = torch.tensor([[1.0], [3.0]])

    combine(tensors, (1.0, 1.0), AverageParams())

    assert tensors.tolist() == [[1.0], [3.0]]
