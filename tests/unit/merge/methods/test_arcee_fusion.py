from __future__ import annotations

import pytest
import torch

from modelworks.merge.methods.arcee_fusion import ARCEE_FUSION
from pieces import merged

DICE = torch.Generator().manual_seed(2)


@pytest.mark.parametrize("shape", [(300, 40), (2000,), (3, 200_000), (1,)])
def test_keeps_the_changes_whose_score_stands_out(shape: tuple[int, ...]) -> None:
    base = torch.randn(shape, generator=DICE)
    model = base + 0.1 * torch.randn(shape, generator=DICE)
    p, q = model.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    score = (model - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ranked = score.flatten().sort().values
    first, median, third = (ranked[quarter * (len(ranked) - 1) // 4] for quarter in (1, 2, 3))
    expected = torch.where(score >= median + 1.5 * (third - first), model, base)

    torch.testing.assert_close(merged(ARCEE_FUSION, [model], base), expected)


def test_a_model_that_learnt_nothing_gives_the_base() -> None:
    base = torch.randn(4, 4, generator=DICE)

    assert torch.equal(merged(ARCEE_FUSION, [base], base), base)
