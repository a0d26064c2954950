"""Layers that are computed faster give what PEFT's give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from adapted_network import adapted, assert_same, learn
from modelworks.train.fast_layers import quicken


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_loss_and_gradients_are_the_library_s_own(tmp_path: Path, targets: Any) -> None:
    plain, fast = (adapted(tmp_path, target_modules=targets, use_rslora=True) for _ in range(2))
    kept = set(fast.state_dict())
    quicken(fast)

    loss, gradients = learn(fast)
    expected, wanted = learn(plain)

    assert loss == pytest.approx(expected, abs=1e-6)
    assert_same(gradients, wanted)
    assert set(fast.state_dict()) == kept


def test_gradients_pass_through_checkpointing(tmp_path: Path) -> None:
    plain, fast = (adapted(tmp_path) for _ in range(2))
    quicken(fast)
    fast.gradient_checkpointing_enable({"use_reentrant": False})

    assert_same(learn(fast)[1], learn(plain)[1])


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_is_more_than_a_plain_lora_is_left_to_the_library(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain, fast = (adapted(tmp_path, **changes) for _ in range(2))
    quicken(fast)

    loss, gradients = learn(fast)
    expected, wanted = learn(plain)

    assert loss == expected
    assert_same(gradients, wanted)


def test_an_adapter_that_is_switched_off_or_merged_is_not_added(tmp_path: Path) -> None:
    network = adapted(tmp_path)
    ids = torch.randint(3, 250, (2, 9))
    with torch.no_grad():
        before = network(ids).logits
        with network.disable_adapter():
            off = network(ids).logits
        quicken(network)

        with network.disable_adapter():
            assert torch.equal(network(ids).logits, off)
        assert torch.allclose(network(ids).logits, before, atol=1e-5)
        assert torch.allclose(network.merge_and_unload()(ids).logits, before, atol=1e-5)


def test_a_copy_has_weights_of_its_own(tmp_path: Path) -> None:
    network = adapted(tmp_path)
    quicken(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()

    ids = torch.randint(3, 250, (2, 9))

    assert not network(ids).logits.eq(0).all()
    assert other(ids).logits.eq(0).all()


def test_less_is_kept_for_the_way_back(tmp_path: Path) -> None:
    plain, fast = (adapted(tmp_path) for _ in range(2))
    quicken(fast)

    assert kept_bytes(fast) < 0.85 * kept_bytes(plain)


def kept_bytes(network: Any) -> int:
    own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(torch.randint(3, 250, (2, 50)))
    assert output is not None
    return sum(size for place, size in kept.items() if place not in own)
