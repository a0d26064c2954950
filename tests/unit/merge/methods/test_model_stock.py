from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.model_stock import MODEL_STOCK
from pieces import merged

BASE = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
STEP = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
TURNED = torch.tensor([[1.0, 1.0], [0.0, 0.0]])


def test_goes_as_far_as_the_models_agree() -> None:
    found = merged(MODEL_STOCK, [BASE + STEP, BASE + TURNED], BASE)

    # cosine 1/sqrt 2, so t = 2c / (1 + c) = 0.8284; the mean task vector is [1, 0.5]
    assert found.flatten().tolist() == pytest.approx([1.8284271, 1.4142136, 2, 2])


def test_models_that_agree_in_nothing_give_the_base() -> None:
    across = torch.tensor([[0.0, 3.0], [0.0, 0.0]])

    assert torch.equal(merged(MODEL_STOCK, [BASE + STEP, BASE + across], BASE), BASE)
    assert torch.equal(merged(MODEL_STOCK, [BASE + STEP, BASE - STEP], BASE), BASE)
    assert torch.equal(merged(MODEL_STOCK, [BASE, BASE], BASE), BASE)


def test_equal_models_give_themselves() -> None:
    assert torch.equal(merged(MODEL_STOCK, [BASE + STEP] * 3, BASE), BASE + STEP)


def test_filter_wise_every_row_goes_its_own_way() -> None:
    below = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    # the first rows of the task vectors are equal, the second opposite
    found = merged(MODEL_STOCK, [BASE + STEP + below, BASE + STEP - below], BASE, {"filter_wise": True})

    torch.testing.assert_close(found, BASE + STEP)
