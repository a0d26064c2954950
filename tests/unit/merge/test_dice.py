from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelworks.merge.dice import Dice

NAME = "model.layers.0.mlp.up_proj.weight"


def chances(*shares: float) -> torch.Tensor:
    return torch.tensor(shares)[:, None]


@given(start=st.sampled_from([0, 7, (1 << 31) - 9, 5 << 31]), cuts=st.lists(st.integers(1, 39), max_size=4))
def test_pieces_of_any_size_have_the_same_chances(start: int, cuts: list[int]) -> None:
    dice, shares = Dice(1, NAME, 2), chances(0.5, 0.2)
    bounds = [0, *sorted(set(cuts)), 40]

    pieces = [dice.below(shares, start + low, high - low) for low, high in pairwise(bounds)]

    assert torch.equal(torch.cat(pieces, 1), dice.below(shares, start, 40))


def test_the_numbers_never_change() -> None:
    rolls = Dice(42, NAME, 2).below(chances(0.5, 0.5), (1 << 31) - 12, 24)

    assert ["".join("01"[int(roll)] for roll in row) for row in rolls] == GOLDEN


GOLDEN = ["011101001111011001001101", "011111000011010111001011"]


@given(shares=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2), start=st.sampled_from([0, (1 << 31) - 9]))
def test_numpy_draws_the_same_as_torch(shares: list[float], start: int) -> None:
    dice = Dice(42, NAME, 2)

    by_number, by_array = (dice.below(column, start, 999) for column in (chances(*shares), chances(*shares).numpy()))

    assert torch.equal(by_number, torch.from_numpy(by_array))
    assert np.array_equal(by_array, dice.below(np.repeat(chances(*shares).numpy(), 999, 1), start, 999))


def test_nothing_has_a_chance_of_zero_and_everything_of_one() -> None:
    never, always = Dice(3, NAME, 2).below(chances(0.0, 1.0), 0, 1 << 20)

    assert never.sum() == 0
    assert always.sum() == 1 << 20


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_as_many_are_drawn_as_chance_says(share: float) -> None:
    drawn = Dice(0, NAME, 1).below(chances(share), 0, 1 << 20)[0].float()
    spread = (share * (1 - share)) ** 0.5

    # in all, in every 64th of them, and of those that follow on one that is drawn: within five standard deviations
    for some in (drawn, drawn[::64], drawn[1:][drawn[:-1] == 1]):
        assert abs(float(some.mean()) - share) < 5 * spread / len(some) ** 0.5


def test_models_tensors_seeds_and_far_away_elements_are_independent() -> None:
    half, count = chances(0.5, 0.5), 1 << 18
    rows = [
        *Dice(0, NAME, 2).below(half, 0, count), Dice(1, NAME, 2).below(half, 0, count)[0],
        Dice(0, "lm_head.weight", 2).below(half, 0, count)[0], Dice(0, NAME, 2).below(half, 1 << 32, count)[0],
    ]  # fmt: skip

    # The correlation of independent rows is about 1 / sqrt(2^18) = 0.002.
    correlations = torch.corrcoef(torch.stack(rows).float()) - torch.eye(len(rows))
    assert correlations.abs().max() < 0.01


def test_rolls_are_spread_evenly() -> None:
    (rolls,) = Dice(0, NAME, 1)._rolls(0, 0, 1 << 20, torch.empty(0))

    counts = torch.histc(rolls.float(), 256, -(2.0**31), 2.0**31)
    # chi square of 255 degrees of freedom: 255 on average, 22.6 its standard deviation
    assert ((counts - 4096) ** 2 / 4096).sum() < 255 + 5 * 22.6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu")
def test_a_gpu_rolls_the_same() -> None:
    here, there = (Dice(5, NAME, 2).below(chances(0.3, 0.7).to(device), 3, 1 << 20) for device in ("cpu", "cuda"))

    assert torch.equal(here, there.cpu())
