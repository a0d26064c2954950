from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from modelworks.core.errors import Unsupported
from modelworks.weights.gguf import GgufFile, gguf_name, llama_name
from modelworks.weights.gguf_export import check_gguf, write_gguf
from tiny import tiny_llama


def tiny_of(folder: Path, kind: str, *, pieces: bool = False) -> Path:
    """A network of two layers of any kind with random weights, and a tokenizer of letters and one merge."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    base = tiny_llama(folder)
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    # transformers' loader takes 128 for granted in qwen3, as all of them have it.
    width = 128 if kind == "qwen3" else 8
    settings |= {"num_key_value_heads": 2, "vocab_size": 320, "head_dim": width, "max_position_embeddings": 128}
    config = AutoConfig.for_model(kind, **settings, tie_word_embeddings=False)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    network.save_pretrained(base)
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
