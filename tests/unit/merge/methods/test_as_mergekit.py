"""Sums over what mergekit 0.1.5 makes of one small tensor, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelworks.merge.method import methods
from pieces import merged

PLACES = torch.arange(48)
BASE = ((PLACES * 37 % 101 - 50) / 64).view(6, 8)
MODELS = [BASE + ((PLACES * (29 + 12 * k) % 41 - 20) / 128).view(6, 8) for k in range(3)]
WEIGHTS = (0.5, 0.25, 0.75)


@pytest.mark.parametrize("elements", [48, 16])
@pytest.mark.parametrize(
    ("method", "with_base", "count", "params", "total", "by_place"),
    [
        ("linear", False, 3, {}, -2.1966146, -37.361978),
        ("linear", False, 3, {"normalize": False}, -3.2949219, -56.042969),
        ("slerp", False, 2, {"t": 0.25}, -2.9058484, -56.596723),
        ("nuslerp", False, 2, {}, -3.5286531, -71.721523),
        ("nuslerp", True, 2, {}, -4.6621916, -99.936356),
        ("nuslerp", True, 2, {"nuslerp_flatten": False}, -4.6552191, -98.159402),
        ("nuslerp", True, 2, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, -4.6783402, -101.592712),
        ("multislerp", False, 3, {}, -2.2163152, -37.477555),
        ("multislerp", True, 3, {}, -3.3301418, -62.884681),
        ("multislerp", True, 3, {"normalize_weights": False}, -4.5733375, -91.639521),
        ("karcher", False, 3, {}, -3.4725460, -68.751541),
        ("model_stock", True, 3, {}, 2.5560263, 77.078131),
        ("model_stock", True, 3, {"filter_wise": True}, 5.2737950, 142.502869),
        ("nearswap", True, 1, {"t": 0.05}, -0.9015625, -7.732814),
        ("arcee_fusion", True, 1, {}, -0.5468750, 3.031250),
        ("ram", True, 3, {"epsilon": 0.05}, -4.9296876, -105.472657),
        ("ramplus_tl", True, 3, {"epsilon": 0.05}, -4.9734376, -106.563284),
    ],
)
def test_gives_what_mergekit_gives(
    method: str, with_base: bool, count: int, params: dict[str, Any], total: float, by_place: float, elements: int
) -> None:
    found = methods()[method]
    weights = WEIGHTS[:count] if found.takes_weights else ()

    result = merged(found, MODELS[:count], BASE if with_base else None, params, weights, elements).flatten().double()

    assert result.sum().item() == pytest.approx(total, abs=2e-6)
    assert (result @ (PLACES + 1.0).double()).item() == pytest.approx(by_place, abs=5e-5)
