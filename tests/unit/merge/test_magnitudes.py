from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelworks.merge.magnitudes import count_magnitudes, kth_smallest


@given(values=st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=50), data=st.data())
def test_the_kth_smallest_magnitude_is_what_sorting_finds(values: list[float], data: st.DataObject) -> None:
    row = torch.tensor(values).bfloat16()
    k = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values) - 1))
    rows = torch.stack([row, row.flip(0)])

    found = kth_smallest(count_magnitudes([rows[:, :cut], rows[:, cut:]]), k)

    assert found.tolist() == [[row.abs().sort().values[k - 1].item()]] * 2


def test_the_zeroth_smallest_is_zero_so_that_nothing_is_below_it() -> None:
    assert kth_smallest(count_magnitudes([torch.ones(2, 3).bfloat16()]), 0).tolist() == [[0.0], [0.0]]
