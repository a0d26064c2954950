"""Weights kept in fewer bits: what is rounded, and that nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from logits import answer, read_logits
from modelworks.core import kernels
from modelworks.core.errors import Invalid, Unsupported
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native import narrow
from modelworks.serve.native.checkpoint import Linear
from modelworks.serve.native.model import load
from modelworks.serve.native.narrow import FEW_ROWS, HalfLinear, Int8Linear, keep_exact
from modelworks.serve.native.runner import Runner
from reference import CLOSE, open_model, reference, some_tokens
from tiny import tiny_adapter, tiny_llama


@pytest.mark.parametrize(("outer", "inner"), [(7, 32), (50, 96), (5, 24)])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 40])
def test_the_product_is_that_of_the_rounded_weights(outer: int, inner: int, rows: int) -> None:
    torch.manual_seed(0)
    weight, bias, x, other = (torch.randn(*size) for size in ((outer, inner), (outer,), (rows, inner), (rows, outer)))

    linear = Int8Linear(weight, bias)

    # a few rows keep 8 bits, of inputs and of results
    near: dict[str, Any] = (
        {"atol": 1e-5, "rtol": 1e-5} if rows > FEW_ROWS or inner % 32 else {"atol": 0.1, "rtol": 2**-7}
    )
    exact = x @ linear.whole().T + bias
    torch.testing.assert_close(linear(x), exact, **near)
    torch.testing.assert_close(linear.plus(x, other), exact + other, **near)


def test_a_weight_of_a_byte_is_off_by_half_a_127th_of_the_largest_of_its_row() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 64) * torch.logspace(-3, 3, 40)[:, None]
    weight[3] = 0

    rounded = Int8Linear(weight).whole()

    # and by the scale's own rounding to 8 bits, which can cut off the largest
    assert ((rounded - weight).abs() <= weight.abs().amax(dim=1, keepdim=True) / 127 * 0.76).all()
    assert rounded[3].tolist() == [0] * 64


def test_a_model_computes_what_it_would_of_rounded_weights_with_adapters_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "FEW_ROWS", 0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "tie_word_embeddings": False}
    folder = tiny_llama(tmp_path / "model", dtype="float32", **sizes)
    rounded = tiny_llama(tmp_path / "rounded", dtype="float32", **sizes)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if weight.dim() == 2 and "embed" not in name:
            tensors[name] = Int8Linear(weight).whole()
    save_file(tensors, rounded / "model.safetensors", metadata={"format": "pt"})
    adapters = {
        "lora": tiny_adapter(tmp_path / "lora", rounded, seed=1),
        "dora": tiny_adapter(tmp_path / "dora", rounded, seed=2, use_dora=True, targets=("o_proj", "up_proj")),
    }
    model = open_model(folder, quantization="int8")
    for name, path in adapters.items():
        model.adapters.add(name, path)
    prompt = some_tokens(7, 9)
    names = [None, *adapters]

    found = read_logits(model, [answer(str(name), prompt, name) for name in names], [[]] * 3)

    for name, logits in zip(names, found, strict=True):
        torch.testing.assert_close(logits[0], reference(rounded, prompt, adapters.get(name or ""))[-1], **CLOSE)


@pytest.mark.parametrize("biased", [True, False])
def test_weights_of_16_bits_are_kept_in_16_bits_and_others_are_not(biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(50, 24), torch.randn(50) if biased else None
    x, other = torch.randn(5, 24), torch.randn(5, 50)
    short = weight.bfloat16().float()

    kept = keep_exact(short, bias)

    assert isinstance(kept, HalfLinear)
    assert torch.equal(kept.whole(), short)
    exact = torch.nn.functional.linear(x, short, bias)
    torch.testing.assert_close(kept(x), exact)
    torch.testing.assert_close(kept.plus(x, other), exact + other)
    for whole in (weight, short * 1e5):
        assert type(keep_exact(whole, bias)) is Linear


def test_an_engine_that_may_choose_computes_a_checkpoint_of_16_bits_as_it_is(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    model = load(EngineSpec(model_folder=str(folder), model_name="m"))
    if model.dtype != "float32":
        pytest.skip("a processor that computes with bfloat16")
    prompt, follow = some_tokens(1, 40), some_tokens(2, 3)

    (found,) = read_logits(model, [answer("a", prompt)], [follow])

    assert isinstance(model.runner, Runner)
    assert isinstance(model.runner._weights.head, HalfLinear)
    torch.testing.assert_close(found, reference(folder, prompt + follow)[39:], **CLOSE)


def test_what_was_read_of_a_checkpoint_of_16_bits_is_kept_in_16_bits_too(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", hidden_size=64, head_dim=32, num_attention_heads=2, num_key_value_heads=1)
    model = load(EngineSpec(model_folder=str(folder), model_name="m"))
    if model.dtype != "float32" or not kernels.has("attend"):
        pytest.skip("a processor that computes with bfloat16, or has no kernels")
    prompts, follow = [some_tokens(1, 40), some_tokens(2, 17)], [some_tokens(3, 3)] * 2

    found = read_logits(model, [answer(str(at), prompt) for at, prompt in enumerate(prompts)], follow)

    assert isinstance(model.runner, Runner)
    assert model.runner.cache.layers[0].dtype == torch.float16
    for prompt, more, logits in zip(prompts, follow, found, strict=True):
        expected = reference(folder, prompt + more)[len(prompt) - 1 :]
        torch.testing.assert_close(logits, expected, atol=2e-3, rtol=1e-2)
        # In bfloat16 it would be off by more.
        assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()


def test_other_weights_are_kept_as_those_before(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32", tie_word_embeddings=False)
    model = open_model(folder, quantization="int8")

    model.runner.change_weights(load_file(folder / "model.safetensors"))

    assert isinstance(model.runner, Runner)
    weights = model.runner._weights
    assert all(isinstance(linear, Int8Linear) for layer in weights.layers for linear in layer.linear.values())
    assert model.dtype == "int8"


def test_what_cannot_be_kept_so_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    with pytest.raises(Invalid, match="'int3' is not a quantization; use none or int8"):
        open_model(folder, quantization="int3")
    with pytest.raises(Unsupported, match=r"cannot run PhiForCausalLM.* no int8 weights"):
        open_model(tiny_llama(tmp_path / "other", architectures=["PhiForCausalLM"]), quantization="int8")
