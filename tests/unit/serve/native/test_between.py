"""Kernels for what lies between a layer's products give what torch's operations give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modelworks.core import kernels
from modelworks.serve.native import between
from modelworks.serve.native.between import by_kernel, gated, rms_norm, turn

pytestmark = [
    pytest.mark.skipif(not kernels.has("norm"), reason="no kernel for this processor"),
    pytest.mark.parametrize("level", kernels._levels("norm")),
    pytest.mark.parametrize("rows", [1, 3, 70]),
]
NEAR: dict[str, Any] = {"rtol": 2e-6, "atol": 2e-6}


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    kernels._kernel.cache_clear()
    monkeypatch.setattr(kernels, "_level", lambda: level)


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._kernel.cache_clear()
    monkeypatch.setattr(between, "by_kernel", lambda _: False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0])) * 3


@pytest.mark.parametrize("width", [16, 24, 576])
def test_norm(monkeypatch: pytest.MonkeyPatch, rows: int, width: int) -> None:
    x, weight = drawn(rows, width), drawn(width)
    assert by_kernel(x)

    found = rms_norm(x, weight, 1e-5)

    by_torch(monkeypatch)
    torch.testing.assert_close(found, rms_norm(x, weight, 1e-5), **NEAR)


@pytest.mark.parametrize("width", [16, 24, 1536])
def test_gate(monkeypatch: pytest.MonkeyPatch, rows: int, width: int) -> None:
    both = drawn(rows, 2 * width) * 5
    both[0, :4] = torch.tensor([0.0, -0.0, 200.0, -200.0])

    found = gated(both, gelu=False)

    by_torch(monkeypatch)
    torch.testing.assert_close(found, gated(both.clone(), gelu=False), **NEAR)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("size", [24, 32, 64, 96])
def test_turn(monkeypatch: pytest.MonkeyPatch, rows: int, size: int, narrow: bool) -> None:
    heads, kv_heads, room = 3, 2, 6 * rows
    qkv, cos, sin = drawn(rows, heads + 2 * kv_heads, size), drawn(rows, size), drawn(rows, size)
    places = torch.randperm(room, generator=torch.Generator().manual_seed(1))[: rows * 2 * kv_heads]
    made = []

    for torches in (False, True):
        if torches:
            by_torch(monkeypatch)
        own, held = qkv.clone(), torch.zeros(room, size, dtype=torch.float16 if narrow else torch.float32)
        turn(own, heads, cos, sin, places, held)
        made.append((own[:, :heads], held))

    (queries, kept), (expected, wanted) = made
    torch.testing.assert_close(queries, expected, **NEAR)
    torch.testing.assert_close(kept, wanted, **({"rtol": 1e-3, "atol": 1e-5} if narrow else NEAR))
    assert kept.any()
