"""The engine's arithmetic against transformers and PEFT, alone and in mixed batches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from logits import answer, read_logits
from modelworks.serve.native.scheduler import Piece
from reference import CLOSE, open_model, reference, some_tokens
from tiny import tiny_adapter, tiny_llama


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 3},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    ],
    ids=["small", "grouped heads, untied", "llama3 rope", "linear rope", "mistral"],
)
def test_logits_are_those_of_transformers_for_prompt_and_answer(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32", **config)
    prompt, follow = some_tokens(1, 70), some_tokens(2, 20)

    (found,) = read_logits(open_model(folder), [answer("a", prompt)], [follow])

    expected = reference(folder, prompt + follow)[len(prompt) - 1 :]
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_the_qwen_families_are_right_with_their_biases_and_head_norms(tmp_path: Path, family: str) -> None:
    import transformers

    tiny_llama(tmp_path / "model", dtype="float32")
    config = transformers.AutoConfig.for_model(
        family, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, vocab_size=259, max_position_embeddings=256, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in network.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            weight.data += 0.3 * torch.randn_like(weight)
    network.save_pretrained(tmp_path / "model")
    prompt, follow = some_tokens(1, 30), some_tokens(2, 10)

    (found,) = read_logits(open_model(tmp_path / "model"), [answer("a", prompt)], [follow])

    torch.testing.assert_close(found, reference(tmp_path / "model", prompt + follow)[29:], **CLOSE)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma", {}),
        ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
        ("gemma3_text", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
        ("gpt_neox", {}),
        ("phi", {}),
    ],
)
def test_other_families_are_right_alone_and_in_company(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    import transformers

    folder = tiny_llama(tmp_path / "model", dtype="float32")
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    }  # fmt: skip
    if "n_embd" in settings:
        sizes = {}
    elif not family.startswith("gemma"):
        del sizes["head_dim"], sizes["num_key_value_heads"]
    config = transformers.AutoConfig.for_model(
        family, vocab_size=259, eos_token_id=2, bos_token_id=1, pad_token_id=0, **sizes, **settings
    )
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in network.named_parameters():
        weight.data += (0.3 if "norm" in name else 0.1) * torch.randn_like(weight)
    network.save_pretrained(folder)
    model = open_model(folder)
    prompts, follow = [some_tokens(seed, 30) for seed in range(3)], some_tokens(9, 5)
    prompts[2][:20] = prompts[1][:20]

    found = read_logits(model, [answer(f"{i}", prompt) for i, prompt in enumerate(prompts)], [follow] * 3, 40)

    assert (type(model.runner).__name__ == "Runner") == (family == "gemma")
    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, reference(folder, prompt + follow)[29:], **CLOSE)


@pytest.mark.parametrize("tokens_per_step", [8, 13, 64, 1000])
def test_a_mixed_batch_gives_each_what_it_gets_alone(tmp_path: Path, tokens_per_step: int) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32")
    model = open_model(folder)
    prompts = [some_tokens(seed, 3 + 11 * seed) for seed in range(6)]
    follows = [some_tokens(seed + 50, 25 - 4 * seed) for seed in range(6)]

    mixed = read_logits(model, [answer(str(i), prompt) for i, prompt in enumerate(prompts)], follows, tokens_per_step)

    for prompt, follow, found in zip(prompts, follows, mixed, strict=True):
        torch.testing.assert_close(found, reference(folder, prompt + follow)[len(prompt) - 1 :], **CLOSE)


def test_base_rows_and_every_adapter_are_right_in_every_order(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32")
    model = open_model(folder)
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    folders: dict[str | None, Path | None] = {
        None: None,
        "attention": tiny_adapter(tmp_path / "a", folder, seed=1, rank=2),
        "all": tiny_adapter(tmp_path / "b", folder, seed=2, rank=4, targets=every, use_rslora=True),
        "patterns": tiny_adapter(
            tmp_path / "c", folder, seed=3, rank=3, targets=("gate_proj", "o_proj"), layers_to_transform=[1],
            rank_pattern={"o_proj": 5}, alpha_pattern={"o_proj": 9},
        ),
    }  # fmt: skip
    for name, path in folders.items():
        if name is not None and path is not None:
            model.adapters.add(name, path)
    prompt, follow = some_tokens(7, 9), some_tokens(8, 4)
    expected = {name: reference(folder, prompt + follow, path)[len(prompt) - 1 :] for name, path in folders.items()}
    plain = expected[None]
    assert all((expected[name] - plain).abs().max() > 0.01 for name in folders if name is not None)

    for order in itertools.permutations(folders):
        rows = [*order, order[0]]
        answers = [answer(str(i), prompt, name) for i, name in enumerate(rows)]
        found = read_logits(model, answers, [follow] * len(rows), tokens_per_step=16)
        for name, logits in zip(rows, found, strict=True):
            torch.testing.assert_close(logits, expected[name], **CLOSE)


def test_base_rows_beside_as_many_adapters_as_there_are_slots_are_right(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32")
    model = open_model(folder)
    prompt, follow = some_tokens(7, 9), some_tokens(8, 2)
    expected: dict[str | None, torch.Tensor] = {None: reference(folder, prompt + follow)[8:]}
    for seed in range(8):  # the slots there are
        own = f"adapter {seed}"
        path = tiny_adapter(tmp_path / own, folder, seed, rank=1 + seed % 3, targets=("q_proj", "v_proj", "down_proj"))
        model.adapters.add(own, path)
        expected[own] = reference(folder, prompt + follow, path)[8:]
    names = list(expected)

    for turn in range(len(names)):
        rows = (names[turn:] + names[:turn])[:: -1 if turn % 2 else 1]
        rows.insert(turn, None)
        answers = [answer(str(i), prompt, name) for i, name in enumerate(rows)]
        found = read_logits(model, answers, [follow] * len(rows), tokens_per_step=32)
        for name, logits in zip(rows, found, strict=True):
            torch.testing.assert_close(logits, expected[name], **CLOSE)


def test_an_adapter_taken_out_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32")
    model = open_model(folder)
    first, second = tiny_adapter(tmp_path / "a", folder, seed=1), tiny_adapter(tmp_path / "b", folder, seed=2)
    model.adapters.add("first", first)
    model.adapters.add("second", second)

    model.adapters.remove("first")

    (found,) = read_logits(model, [answer("x", some_tokens(1, 8), "second")], [[]])
    torch.testing.assert_close(found[0], reference(folder, some_tokens(1, 8), second)[-1], **CLOSE)
    assert model.adapters.names == ("second",)


def test_a_preempted_answer_is_read_again_and_goes_on_as_if_nothing_was(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", dtype="float32")
    # Room for 512 positions: two slots of 256. The layer has 1 head of 8, keys and values, 4 bytes, 2 layers: 128 B.
    model = open_model(folder, kv_cache_bytes=512 * 128)
    prompts, follow = [some_tokens(seed, 40) for seed in range(4)], some_tokens(9, 10)

    found = read_logits(model, [answer(str(i), prompt) for i, prompt in enumerate(prompts)], [follow] * 4)

    for prompt, logits in zip(prompts, found, strict=True):
        torch.testing.assert_close(logits, reference(folder, prompt + follow)[39:], **CLOSE)


def test_pieces_know_when_the_next_token_can_be_sampled() -> None:
    one = answer("a", [1, 2, 3])

    assert not Piece(one, 2).gives_token
    assert Piece(one, 3).gives_token
