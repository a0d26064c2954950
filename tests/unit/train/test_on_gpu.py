"""What libraries do on a GPU: said when it cannot be had, and the same loss where it can."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from adapted_network import adapted, assert_same, learn
from modelworks.core.errors import Unsupported
from modelworks.train import on_gpu
from modelworks.train.on_gpu import check_on_gpu, compile_layers, hasten
from modelworks.train.spec import TrainSpec
from modelworks.weights.scoring import pack_rows

BOTH = ("use_liger_kernel", "torch_compile")


def spec_of(**changes: Any) -> TrainSpec:
    return TrainSpec.model_validate({"model": "m", "dataset": "d"} | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"device": "cpu"} | dict.fromkeys(BOTH, True), [f"{name}: is for a GPU" for name in BOTH]),
        ({"device": "cuda", "use_liger_kernel": True}, ["use_liger_kernel: liger-kernel is not installed here"]),
        ({"device": "cuda", "torch_compile": True}, []),
        ({"device": "cuda", "torch_compile": True, "provider": "unsloth"}, ["torch_compile: unsloth has its own"]),
        (
            {"device": "cuda", "torch_compile": True, "parallel": "fsdp", "num_processes": 2, "tuning": "full"},
            ["torch_compile: fsdp divides the layers"],
        ),
        ({"device": "cpu", "packing": True}, []),
        ({"device": "cuda", "packing": False, "gradient_checkpointing": True, "provider": "unsloth"}, []),
        ({"packing": True, "gradient_checkpointing": True}, ["packing: gradient_checkpointing and reward"]),
        ({"packing": True, "strategy": "reward"}, ["packing: gradient_checkpointing and reward"]),
        ({"packing": True, "provider": "unsloth"}, ["packing: unsloth has its own"]),
    ],
)
def test_what_cannot_be_had_is_said_before_the_start(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: list[str]
) -> None:
    monkeypatch.setattr(on_gpu, "find_spec", lambda _name: None)

    found = list(map(str, check_on_gpu(spec_of(**changes))))

    assert len(found) == len(said)
    assert all(one.startswith(start) for one, start in zip(found, said, strict=True)), found


def test_the_words_of_others_are_known() -> None:
    assert spec_of(enable_liger_kernel=True).use_liger_kernel
    assert spec_of(sample_packing=True).packing is True
    assert spec_of().packing == "auto"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about what it traces
@pytest.mark.parametrize("packing", [True, False])
def test_compiled_layers_learn_the_same_and_are_saved_under_the_same_names(tmp_path: Path, packing: bool) -> None:
    plain, compiled = (adapted(tmp_path) for _ in range(2))
    kept = set(compiled.state_dict())
    for network in (plain, compiled):
        pack_rows(network, packing)

    compile_layers(compiled, backend="eager")

    loss, gradients = learn(compiled)
    expected, wanted = learn(plain)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert_same(gradients, wanted)
    assert set(compiled.state_dict()) == kept
    assert torch._dynamo.utils.counters["frames"]["ok"]


def test_a_network_that_does_not_say_its_layers_is_refused() -> None:
    with pytest.raises(Unsupported, match="does not say what its layers are"):
        compile_layers(SimpleNamespace(_no_split_modules=None, modules=list))


def test_liger_is_asked_for_all_but_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels need a GPU: here it is told of the network, and what it is told is looked at."""
    told: list[Any] = []
    library: Any = ModuleType("liger_kernel.transformers")
    library._apply_liger_kernel_to_instance = lambda **given: told.append(given)
    patches: Any = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    for module in (ModuleType("liger_kernel"), library, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    network, wish = adapted(tmp_path), spec_of(use_liger_kernel=True)

    hasten(network, wish)

    (given,) = told
    assert given.pop("model") is network.get_base_model()
    assert {name for name, wanted in given.items() if not wanted} == {"cross_entropy", "fused_linear_cross_entropy"}
    with pytest.raises(Unsupported, match="liger-kernel has no kernels for rwkv models"):
        hasten(SimpleNamespace(config=SimpleNamespace(model_type="rwkv")), wish)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu")
@pytest.mark.parametrize("fields", [("packing",), *((field,) for field in BOTH), ("packing", *BOTH)])
def test_a_gpu_learns_the_same_with_them(tmp_path: Path, fields: tuple[str, ...]) -> None:
    if "use_liger_kernel" in fields:
        pytest.importorskip("liger_kernel")
    plain, fast = (adapted(tmp_path).to("cuda") for _ in range(2))
    hasten(fast, spec_of(device="cuda", **dict.fromkeys(fields, True)))
    if "packing" in fields:
        pack_rows(fast, True)

    (loss, gradients), (expected, wanted) = learn(fast), learn(plain)

    assert loss == pytest.approx(expected, abs=1e-4)
    assert gradients.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert torch.allclose(gradients[name], grad, rtol=1e-2, atol=1e-4), name
