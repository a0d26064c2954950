from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.nearswap import NEARSWAP
from pieces import merged

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
MODEL = torch.tensor([1.0, 1.25, 1.5, -1.0])


def test_takes_what_is_near_whole_and_of_the_rest_a_step_of_t() -> None:
    assert merged(NEARSWAP, [MODEL], BASE, {"t": 0.25}).tolist() == pytest.approx([1, 1.25, 1.25, 0.75])


def test_t_zero_gives_the_base_and_a_large_t_the_model() -> None:
    assert torch.equal(merged(NEARSWAP, [MODEL], BASE, {"t": 0}), BASE)
    assert torch.equal(merged(NEARSWAP, [MODEL], BASE, {"t": 100}), MODEL)
