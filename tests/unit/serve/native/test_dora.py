"""Adapters that also learned lengths (DoRA), beside others in one batch: PEFT's logits, and nobody else's changed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from logits import answer, read_logits
from modelworks.serve.native.model import LoadedModel
from reference import CLOSE, open_model, reference, some_tokens
from tiny import tiny_adapter, tiny_llama

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2, as its queries, keys and values have biases, which DoRA leaves alone."""
    import transformers

    folder = tiny_llama(tmp_path_factory.mktemp("dora") / "model", dtype="float32")
    config = transformers.AutoConfig.for_model(
        "qwen2", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, vocab_size=259, max_position_embeddings=256, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in network.named_parameters():
        weight.data += (0.3 if name.endswith("bias") else 0.1) * torch.randn_like(weight)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    shelf = tmp_path_factory.mktemp("adapters")
    return {
        "lora": tiny_adapter(shelf / "lora", folder, seed=1, targets=EVERY),
        "dora": tiny_adapter(shelf / "dora", folder, seed=2, rank=3, targets=EVERY, use_dora=True, use_rslora=True),
        "in part": tiny_adapter(
            shelf / "part", folder, seed=3, targets=("k_proj", "down_proj"), use_dora=True, layers_to_transform=[1]
        ),
    }


def with_adapters(folder: Path, adapters: dict[str, Path]) -> LoadedModel:
    model = open_model(folder)
    for name, path in adapters.items():
        model.adapters.add(name, path)
    return model


def test_base_rows_and_every_kind_of_adapter_are_right_in_every_order(folder: Path, adapters: dict[str, Path]) -> None:
    model = with_adapters(folder, adapters)
    prompt, follow = some_tokens(7, 9), some_tokens(8, 3)
    names: list[str | None] = [None, *adapters]
    expected = {name: reference(folder, prompt + follow, adapters.get(name or ""))[8:] for name in names}
    assert all((expected[name] - expected[None]).abs().max() > 0.01 for name in adapters)

    for order in itertools.permutations(names):
        rows = [*order, order[0]]
        answers = [answer(str(i), prompt, name) for i, name in enumerate(rows)]
        found = read_logits(model, answers, [follow] * len(rows), tokens_per_step=16)
        for name, logits in zip(rows, found, strict=True):
            torch.testing.assert_close(logits, expected[name], **CLOSE)


def test_rows_of_others_are_bit_equal_whoever_is_beside_them(folder: Path, adapters: dict[str, Path]) -> None:
    model = with_adapters(folder, adapters)
    prompts, follow = [some_tokens(seed, 12) for seed in range(4)], some_tokens(8, 3)

    def read(*names: str | None) -> list[torch.Tensor]:
        answers = [answer(str(i), prompt, name) for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))]
        return read_logits(model, answers, [follow] * 4)

    beside_base = read(None, "lora", None, None)
    beside_dora = read(None, "lora", "dora", "in part")
    for name in ("dora", "in part"):
        model.adapters.remove(name)
    alone = read(None, "lora", None, None)

    assert all(torch.equal(one, other) for one, other in zip(beside_base[:2], beside_dora[:2], strict=True))
    assert torch.equal(beside_base[0], alone[0])
    torch.testing.assert_close(beside_base[1], alone[1], **CLOSE)


def test_lengths_are_found_anew_for_other_weights(folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = with_adapters(folder, adapters)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    network.save_pretrained(tmp_path / "other")
    prompt = some_tokens(7, 9)

    model.runner.change_weights(load_file(tmp_path / "other" / "model.safetensors"))

    (found,) = read_logits(model, [answer("a", prompt, "dora")], [[]])
    torch.testing.assert_close(found[0], reference(tmp_path / "other", prompt, adapters["dora"])[-1], **CLOSE)
