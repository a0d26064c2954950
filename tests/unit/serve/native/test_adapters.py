"""Each row of a batch is changed by its own adapter, whoever else is in it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from modelworks.serve.native import lora
from modelworks.serve.native.checkpoint import GATE_UP, FolderSource, load_weights
from modelworks.serve.native.config import read_shape
from modelworks.serve.native.lora import Adapters, read_adapter
from tiny import tiny_adapter, tiny_llama


@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.parametrize(("least_rank", "inner"), [(2, 32), (17, 152)])
def test_every_choice_of_adapters_gives_each_row_its_own_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_rank: int, inner: int, by_kernel: bool
) -> None:
    if not by_kernel:
        monkeypatch.setattr(lora, "has_kernels", lambda *_: False)
    base, cpu = tiny_llama(tmp_path / "model", intermediate_size=inner), torch.device("cpu")
    shape = read_shape(base)
    adapters = Adapters(shape, load_weights(FolderSource(base, torch.float32, cpu), shape))
    changes: dict[str | None, torch.Tensor] = {None: torch.zeros(2 * shape.inner, shape.hidden)}
    targets = {"a": ("gate_proj", "up_proj"), "b": ("q_proj", "up_proj"), "c": ("gate_proj",)}
    for rank, (name, targeted) in enumerate(targets.items(), start=least_rank):
        folder = tiny_adapter(tmp_path / name, base, targets=targeted, rank=rank, seed=rank)
        adapters.add(name, folder)
        pairs = read_adapter(folder, shape)
        halves = [pairs.get((1, f"mlp.{half}_proj")) for half in ("gate", "up")]
        none = torch.zeros(shape.inner, shape.hidden)
        changes[name] = torch.cat([none if pair is None else pair.up @ pair.down for pair in halves])
    torch.manual_seed(0)

    prompts = ("b",) * 20 + (None,) * 3 + ("c",) * 17
    for asked in itertools.product(changes, repeat=4):
        rows = asked if asked[0] else asked + prompts
        x, product = torch.randn(len(rows), shape.hidden), torch.randn(len(rows), 2 * shape.inner)
        expected = product + torch.stack([changes[row] @ mine for row, mine in zip(rows, x, strict=True)])
        adapters.select(rows)
        torch.testing.assert_close(adapters.add_to(product, x, 1, GATE_UP), expected, rtol=1e-4, atol=1e-5)
