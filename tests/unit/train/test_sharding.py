from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.train.optimizer import make_optimizer
from modelworks.train.sharding import check_sharding, divide, gather, is_divided, scatter, undivided
from modelworks.train.spec import TrainSpec
from modelworks.weights.loading import load_network
from tiny import tiny_llama


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process: its part is the whole, but weights are kept and handled as parts are."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def divided(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    network = load_network(folder, dtype, "cpu")
    divide(network, "cpu")
    return network


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("tied", [True, False])
def test_divided_weights_come_together_and_apart_again(tmp_path: Path, tied: bool) -> None:
    whole, other = (tiny_llama(tmp_path / name, seed, tie_word_embeddings=tied) for seed, name in enumerate("ab"))
    network = divided(whole)
    assert all(is_divided(weight) for weight in network.parameters())

    scatter(network, other)

    expected = load_network(other, torch.float32, "cpu")
    found = undivided(network, keep=True)
    assert type(found) is type(expected)
    assert all(torch.equal(found.state_dict()[name], weight) for name, weight in expected.state_dict().items())
    assert ("lm_head.weight" in gather(network, keep=True)) is not tied
    assert gather(network, keep=False) == {}
    assert undivided(network, keep=False) is None


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_of_parts_goes_on_from_its_state(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tiny_llama(tmp_path / "tiny")
    tokens = torch.arange(3, 30)[None]
    runs = []
    for steps in ((1, 1), (2,)):
        network = divided(folder, dtype)
        optimizer = make_optimizer(network, 1e-2, 0.1)
        for part, count in enumerate(steps):
            if part:
                state = optimizer.state_dict()
                assert not any(is_divided(moment) for moments in state["state"].values() for moment in moments.values())
                optimizer = make_optimizer(network, 1e-2, 0.1)
                optimizer.load_state_dict(state)
            for _ in range(count):
                network(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                network.zero_grad()
        runs.append(gather(network, keep=True))

    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_processes": 1}, "parallel: fsdp divides the weights among processes, and there is one"),
        ({"strategy": "qlora"}, "parallel: weights in 4 bits are not divided"),
        ({"use_dora": True}, "use_dora: measures whole weights"),
        ({"provider": "unsloth"}, "provider: unsloth keeps all weights in each process"),
    ],
)
def test_what_cannot_be_divided_is_told(asked: dict[str, Any], said: str) -> None:
    spec = TrainSpec.model_validate(
        {"model": "tiny", "dataset": "rows", "fsdp": "full_shard", "num_processes": 2} | asked
    )

    (problem,) = check_sharding(spec)

    assert str(problem).startswith(said)
    assert problem.code == "unsupported_combination"


@pytest.mark.parametrize("asked", ["full_shard", "full_shard auto_wrap", True, "fsdp"])
def test_fsdp_may_be_asked_for_as_elsewhere(asked: str | bool) -> None:
    spec = TrainSpec.model_validate({"model": "tiny", "dataset": "rows", "fsdp": asked})

    assert spec.parallel == "fsdp"
    assert spec.trains_parts is False
