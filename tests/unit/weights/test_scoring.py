from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelworks.weights.loading import load_network
from modelworks.weights.scoring import answer_loss
from tiny import tiny_llama


def test_the_loss_is_the_library_s_own_with_far_fewer_positions_in_the_head(tmp_path: Path) -> None:
    network = load_network(tiny_llama(tmp_path), torch.float32, "cpu")
    torch.manual_seed(0)
    ids = torch.randint(3, 250, (3, 20))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.7, -100)
    seen: list[int] = []
    network.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[0]))

    total, count = answer_loss(network, ids, labels)
    total.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    ours = network.model.embed_tokens.weight.grad.clone()
    network.zero_grad()
    theirs = network(input_ids=ids, labels=labels).loss
    theirs.backward()

    assert count == int((labels[:, 1:] != -100).sum()) == seen[0]
    assert (total / count).item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(ours / count, network.model.embed_tokens.weight.grad, atol=1e-6)


def test_a_frozen_head_gives_the_same_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelworks.weights.scoring.ROWS_AT_ONCE", 7)
    network = load_network(tiny_llama(tmp_path, tie_word_embeddings=False), torch.float32, "cpu")
    network.lm_head.weight.requires_grad_(False)
    ids = torch.randint(3, 250, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(20) < 6, -100)

    total, count = answer_loss(network, ids, labels)
    (total / count).backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    ours = [weight.grad.clone() for weight in network.model.parameters()]
    network.zero_grad()
    theirs = network(input_ids=ids, labels=labels).loss
    theirs.backward()

    assert (total / count).item() == pytest.approx(theirs.item(), abs=1e-5)
    for grad, weight in zip(ours, network.model.parameters(), strict=True):
        assert torch.allclose(grad, weight.grad, atol=1e-6)
