"""Rows packed into one sequence give what they give apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from modelworks.core.errors import Unsupported
from modelworks.weights import scoring
from modelworks.weights.causal_attention import attend_causally
from modelworks.weights.loading import load_network
from modelworks.weights.packing import pack
from modelworks.weights.scoring import answer_losses, pack_rows
from tiny import tiny_llama


def test_what_rows_begin_alike_with_stands_once() -> None:
    rows = [[5, 6, 7, 1], [9], [5, 6, 8], [5, 6, 7, 1, 2, 3], [5, 6, 8], []]

    packed = pack(rows)
    ids, positions = packed.ids[0], packed.positions[0]

    # 5 6 7 1 2 3, 8 and 9.
    assert len(ids) == len(positions) == len(packed.owners) == 8
    for row, tokens in enumerate(rows):
        places = packed.places[row, : len(tokens)]
        assert ids[places].tolist() == tokens
        assert positions[places].tolist() == list(range(len(tokens)))
    for place, owner in enumerate(packed.owners.tolist()):
        row, at = divmod(owner, packed.places.shape[1])
        assert packed.places[row, at] == place


# Answers that begin alike, that are alike, that end early, and a row of which nothing is scored.
HEAD = [5, 6, 7, 8, 9]
ROWS = [
    ([*HEAD, 20, 21, 22, 23, 24, 25], 6),
    ([*HEAD, 20, 21, 30], 6),
    ([*HEAD, 20, 21, 22, 23, 24, 25], 7),
    ([*HEAD, 40, 41], 7),
    ([60, 61, 62], 1),
]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in ROWS)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in ROWS])
    labels = torch.full_like(ids, -100)
    for row, (tokens, first) in enumerate(ROWS):
        labels[row, first : len(tokens)] = ids[row, first : len(tokens)]
    return ids, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_the_rows_apart(tmp_path: Path, dtype: torch.dtype) -> None:
    ids, labels = batch()
    network = load_network(tiny_llama(tmp_path), dtype, "cpu")
    seen: list[tuple[int, ...]] = []
    network.model.embed_tokens.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape))

    def learn(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses, _ = answer_losses(network, rows, labels)
        # Each weighs otherwise, so that no gradient goes to the wrong row unseen.
        torch.autograd.backward((losses * torch.arange(1, len(losses) + 1)).sum())
        return losses.detach()

    together = learn(ids, labels)
    gradients = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    counts = (labels != -100).sum(1).tolist()
    apart, done = [], 0
    for row, count in enumerate(counts):
        losses, _ = answer_losses(network, ids[row : row + 1], labels[row : row + 1])
        torch.autograd.backward((losses * torch.arange(done + 1, done + count + 1)).sum())
        apart.append(losses.detach())
        done += count

    # The last token of a row is only ever predicted.
    needed = {tuple(tokens[:end]) for tokens, first in ROWS if first < len(tokens) for end in range(1, len(tokens))}
    assert seen[0] == (1, len(needed))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(together, torch.cat(apart), rtol=tolerance)
    for grad, weight in zip(gradients, network.parameters(), strict=True):
        assert (grad - weight.grad).norm() < tolerance * weight.grad.norm()


@pytest.mark.parametrize("why", ["eager", "checkpointing", "window"])
def test_rows_stay_apart_where_packing_would_give_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    ids, labels = batch()
    network: Any = load_network(tiny_llama(tmp_path), torch.float32, "cpu")
    if why == "eager":
        network.set_attn_implementation("eager")
    elif why == "checkpointing":
        network.train().gradient_checkpointing_enable({"use_reentrant": False})
    else:
        network.config.sliding_window = 4
    monkeypatch.setattr(scoring, "pack", lambda _rows: pytest.fail("packed"))

    losses, _ = answer_losses(network, ids, labels)
    torch.autograd.backward(losses.sum())

    assert len(losses) == int((labels != -100).sum())


@pytest.mark.parametrize(("device", "wanted", "packed"), [("cpu", None, True), ("cpu", False, False),
                                                          ("cuda", None, False), ("cuda", True, True)])  # fmt: skip
def test_rows_are_packed_on_a_cpu_or_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, wanted: bool | None, packed: bool
) -> None:
    ids, labels = batch()
    network: Any = load_network(tiny_llama(tmp_path), torch.float32, "cpu")
    monkeypatch.setattr(type(network), "device", torch.device(device))
    seen: list[tuple[int, ...]] = []
    network.model.embed_tokens.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape))

    if wanted is not None:
        pack_rows(network, wanted)
    answer_losses(network, ids, labels)

    assert (seen[0] != ids.shape) == packed


def test_what_cannot_be_packed_is_said_where_it_is_asked_for(tmp_path: Path) -> None:
    network: Any = load_network(tiny_llama(tmp_path), torch.float32, "cpu")
    network.set_attn_implementation("eager")

    pack_rows(network, False)
    with pytest.raises(Unsupported, match="the rows of llama models cannot be packed; leave packing at auto"):
        pack_rows(network, True)


@pytest.mark.parametrize("tokens", [1, 47, 49, 130, 300])
def test_attention_is_torch_s_own(tokens: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, tokens, 6, 8).transpose(1, 2).requires_grad_()
    key, value = (torch.randn(2, tokens, 2, 8).transpose(1, 2).requires_grad_() for _ in range(2))
    weight = torch.randn(2, tokens, 6, 8)

    ours = attend_causally(query, key, value, 0.3)
    found = torch.autograd.grad((ours * weight).sum(), (query, key, value))
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    wanted = torch.autograd.grad((theirs.transpose(1, 2) * weight).sum(), (query, key, value))

    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
