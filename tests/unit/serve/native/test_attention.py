from __future__ import annotations

import pytest
import torch

from modelworks.core import kernels
from modelworks.serve.native.attention import _Listed, _Padded, attention_of_one_each

CPU = torch.device("cpu")


def drawn(slots: int, kv_heads: int, positions: int, head_size: int, group: int, rows: int) -> tuple[torch.Tensor, ...]:
    dice = torch.Generator().manual_seed(slots + head_size)
    layer = torch.randn(2, slots, kv_heads, positions, head_size, generator=dice)
    # As they come out of one product with keys and values: rows lie farther apart than they are long.
    wide = torch.randn(rows, (group + 2) * kv_heads * head_size, generator=dice)
    queries = wide[:, : group * kv_heads * head_size].view(rows, kv_heads, group, head_size)
    return layer, queries * 3 if rows == 1 else queries


pytestmark = pytest.mark.skipif(not kernels.has("attend"), reason="no kernel for this processor")


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("level", kernels._levels("attend"))
@pytest.mark.parametrize("head_size", [16, 64, 80, 128, 256])
@pytest.mark.parametrize(
    ("slots", "lengths"), [([0], [1]), ([2, 0], [70, 3]), ([3, 1, 2], [64, 200, 17]), ([0, 1, 2, 3], [5, 128, 65, 66])]
)
@pytest.mark.parametrize(("kv_heads", "group"), [(3, 3), (1, 1), (2, 8)])
def test_the_kernel_sees_what_torch_sees(
    monkeypatch: pytest.MonkeyPatch,
    slots: list[int],
    lengths: list[int],
    kv_heads: int,
    group: int,
    head_size: int,
    level: int,
    narrow: bool,
) -> None:
    layer, queries = drawn(4, kv_heads, 256, head_size, group, len(slots))
    layer = layer.half() if narrow else layer
    expected = _Padded(slots, lengths, torch.float32, CPU)(layer, queries)
    kernels._kernel.cache_clear()
    monkeypatch.setattr(kernels, "_level", lambda: level)

    seen = _Listed(slots, lengths)(layer, queries)

    kernels._kernel.cache_clear()
    assert seen.shape == expected.shape
    torch.testing.assert_close(seen, expected, rtol=2e-5, atol=2e-6)


def test_what_lies_behind_a_sequence_is_never_looked_at() -> None:
    layer, queries = drawn(3, 2, 256, 64, 2, 2)
    lengths = [60, 130]
    alone = _Listed([1, 2], lengths)(layer, queries)
    layer[:, 0], layer[:, 1, :, 60:], layer[:, 2, :, 130:] = float("nan"), float("nan"), float("nan")

    assert torch.equal(_Listed([1, 2], lengths)(layer, queries), alone)


def test_a_nan_stays_in_its_sequence() -> None:
    layer, queries = drawn(2, 2, 256, 64, 2, 2)
    layer[0, 0, :, 7] = float("nan")

    seen = _Listed([0, 1], [20, 20])(layer, queries)

    assert seen[0].isnan().all()
    assert seen[1].isfinite().all()


def test_scores_far_apart_are_neither_lost_nor_too_large() -> None:
    layer, queries = drawn(1, 1, 256, 64, 1, 1)
    layer[0, 0, 0] *= 40

    seen = _Listed([0], [256])(layer, queries)

    torch.testing.assert_close(seen, _Padded([0], [256], torch.float32, CPU)(layer, queries), rtol=2e-5, atol=1e-5)


def test_others_than_float32_on_a_processor_are_left_to_torch() -> None:
    assert isinstance(attention_of_one_each([0], [1], 3, 64, torch.bfloat16, CPU), _Padded)
    assert isinstance(attention_of_one_each([0], [1], 3, 72, torch.float32, CPU), _Padded)
    assert isinstance(attention_of_one_each([0], [1], 3, 64, torch.float32, CPU), _Listed)
