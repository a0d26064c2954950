from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoConfig, AutoModelForCausalLM

from modelworks.core.errors import Unsupported
from modelworks.weights.gguf import GgufFile, gguf_name, llama_name
from modelworks.weights.gguf_export import check_gguf, write_gguf
from tiny import tiny_llama


def tiny_of(folder: Path, kind: str, *, pieces: bool = False, dtype: Any = torch.float32, **more: Any) -> Path:
    """A network of two layers of any kind with random weights, and a tokenizer of letters and one merge."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    base = tiny_llama(folder)
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # transformers' loader takes 128 for granted in qwen3, as all of them have it.
    width = 128 if kind == "qwen3" else 8
    settings |= {"num_key_value_heads": 2, "vocab_size": 320, "head_dim": width, "max_position_embeddings": 128}
    config = AutoConfig.for_model(kind, **settings | {"tie_word_embeddings": False} | more)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    network.to(dtype).save_pretrained(base)
    letters = [*(f"<0x{byte:02X}>" for byte in range(256))] if pieces else sorted(pre_tokenizers.ByteLevel.alphabet())
    added = [*"ab", "ab"] if pieces else ["ab"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters, *added])}
    made = Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<unk>" if pieces else None, byte_fallback=pieces))
    if not pieces:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(base / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (base / "tokenizer_config.json").write_text(json.dumps(special))
    return base


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_reads_the_same_network(tmp_path: Path, kind: str) -> None:
    folder = tiny_of(tmp_path / kind, kind)

    write_gguf(folder, tmp_path / "model.gguf", "f16", "model")

    ids = torch.tensor([[5, 77, 30, 120, 9, 200]])
    with torch.inference_mode():
        before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        after = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)(ids).logits
    assert torch.allclose(before, after, atol=0.02 * before.abs().max().item())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "dtype": torch.bfloat16}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "dtype": torch.bfloat16}),
        ("qwen2", {"dtype": torch.bfloat16}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_the_gguf_package_reads_every_weight_back(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    folder = tiny_of(tmp_path / kind, kind, **more)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    tied = more.get("tie_word_embeddings", False)

    for dtype in ("f16", "q8_0"):
        write_gguf(folder, tmp_path / f"{dtype}.gguf", dtype, "model")
        found = {
            tensor.name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            for tensor in GGUFReader(tmp_path / f"{dtype}.gguf").tensors
        }
        assert ("output.weight" in found) is not tied
        assert len(found) == len(weights) - tied
        for name, stored in found.items():
            expected = weights[llama_name(name)]
            heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2] if name.startswith("blk") else "")
            if kind == "llama" and heads:  # llama.cpp's: the halves that are turned together, row beside row
                halves = expected.reshape(heads, 2, len(expected) // heads // 2, -1)
                expected = halves.swapaxes(1, 2).reshape(expected.shape)
            if expected.ndim == 1:
                error = torch.zeros(())
            elif dtype == "f16":  # 11 bits; the 8 of bfloat16 fit in them but for those that come close to 0
                error = 2.0**-25 + expected.abs() * (0 if "dtype" in more else 2.0**-11)
            else:  # of a block of 32 the largest is 127 steps; the step itself is f16
                error = expected.reshape(-1, 32).abs().amax(1).repeat_interleave(32).view_as(expected) * (
                    0.5 / 127 + 2.0**-11
                )
            assert ((stored - expected).abs() <= error).all(), name


def test_pieces_carry_scores_and_kinds_and_unused_ids_are_filled(tmp_path: Path) -> None:
    folder = tiny_of(tmp_path / "pieces", "llama", pieces=True)

    write_gguf(folder, tmp_path / "model.gguf", "q8_0", "pieces")

    with GgufFile(tmp_path / "model.gguf") as file:
        tokens, kinds = file.texts("tokenizer.ggml.tokens"), file.metadata["tokenizer.ggml.token_type"]
        assert isinstance(kinds, list)
        assert len(tokens) == len(kinds) == 320
        found = dict(zip(tokens, kinds, strict=True))
        assert [found[token] for token in ("<unk>", "</s>", "<0x41>", "ab", "[PAD319]")] == [2, 3, 6, 1, 5]
        assert file.metadata["tokenizer.ggml.model"] == "llama"
        assert file.metadata["tokenizer.ggml.eos_token_id"] == 2
        # The first merge is the best.
        assert file.metadata["tokenizer.ggml.scores"][tokens.index("ab")] == 0.0  # type: ignore[index] # a list


def test_names_go_both_ways() -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.11.self_attn.q_proj.bias"):
        own = gguf_name(name)
        assert own is not None
        assert llama_name(own) == name
    assert gguf_name("model.layers.0.mlp.experts.gate_up_proj") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "is a GPT2LMHeadModel; these can be written: LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r"scales its positions \(llama3\)"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        check_gguf(tiny_llama(tmp_path / "tiny", **changes))
