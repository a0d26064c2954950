from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.ramplus_tl import RAMPLUS_TL
from pieces import merged

BASE = torch.zeros(6)
# The first changes two weights alone and one with the second, which changes one alone.
FIRST = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0, 0.0])
SECOND = torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("elements", [6, 2])
def test_strengthens_what_one_model_alone_changed(elements: int) -> None:
    found = merged(RAMPLUS_TL, [FIRST, SECOND], BASE, {"r": 0.5, "alpha": 0.75}, elements=elements)

    # shared per own is 1/2 for the first, so 1 + 0.5 / 2; and 1 for the second, of which 0.75 count
    assert found.tolist() == [1.25, 2.5, 3.0, 1.375, 0.0, 0.0]


def test_models_that_change_the_same_weights_are_averaged() -> None:
    assert torch.equal(merged(RAMPLUS_TL, [FIRST, FIRST], BASE), FIRST)
