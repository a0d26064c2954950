"""A small network with an adapter in it, and what it learns of three rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from modelworks.weights.loading import load_network
from modelworks.weights.scoring import answer_loss
from tiny import tiny_llama


def adapted(folder: Path, **changes: Any) -> Any:
    network = load_network(tiny_llama(folder), torch.float32, "cpu")
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    made = get_peft_model(network, LoraConfig(**settings | changes)).train()
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.2)
    return made


def learn(network: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of three rows, the last shorter than the others, and every gradient."""
    ids = torch.randint(3, 250, (3, 20), generator=torch.Generator().manual_seed(1)).to(network.device)
    labels = ids.masked_fill(torch.arange(20, device=ids.device) < 8, -100)
    labels[2, 15:] = -100
    torch.manual_seed(2)
    total, count = answer_loss(network, ids, labels)
    network.zero_grad()
    (total / count).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    return total.item() / count, {n: w.grad.clone() for n, w in network.named_parameters() if w.grad is not None}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, rtol=1e-4, atol=1e-6), name
