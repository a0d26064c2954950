from __future__ import annotations

import torch

from modelworks.merge.methods.ram import RAM
from pieces import merged

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])


def test_keeps_what_one_changed_and_averages_what_several_did() -> None:
    # changed by the first, by both, by both (against each other), and by too little
    changes = [torch.tensor([0.5, 1.0, 1.0, 0.125]), torch.tensor([0.125, 0.5, -1.0, -0.125])]

    found = merged(RAM, [BASE + change for change in changes], BASE, {"epsilon": 0.125})

    assert found.tolist() == [1.5, 1.75, 1.0, 1.0]


def test_one_model_gives_itself() -> None:
    model = torch.tensor([1.5, 0.0, 1.0, 2.0])

    assert torch.equal(merged(RAM, [model], BASE), model)
