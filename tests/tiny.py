"""Checkpoints of a few kilobytes, made on the fly: real Llama, real tokenizer, random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a loadable Llama of two layers with a byte tokenizer (259 tokens) and a chat template; return `folder`.

    Args:
        config: entries that replace those of config.json, e.g. `tie_word_embeddings=False`, `dtype="float32"`.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_tokenizer(folder)
    settings: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "vocab_size": vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "bfloat16",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _values(name, shape, generator).to(getattr(torch, settings["dtype"]))
        for name, shape in llama_shapes(settings).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_adapter(
    folder: Path,
    base: Path,
    seed: int = 0,
    rank: int = 2,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    **options: Any,
) -> Path:
    """Write a PEFT LoRA with random A and B for a checkpoint in `base`; `options` go to LoraConfig."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {"lora_alpha": 3, **options}
    config = peft.LoraConfig(r=rank, target_modules=list(targets), task_type="CAUSAL_LM", **settings)
    wrapped = peft.get_peft_model(network, config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def tiny_gguf(path: Path, kind: Any, seed: int = 0) -> Path:
    """Write a Llama of two layers as a GGUF file, its matrices of that GGMLQuantizationType; return `path`."""
    import gguf
    import numpy
    import torch

    width, inner, heads, keys, tokens = 64, 96, 4, 2, ["<s>", "</s>", "a", "b", "ab", *(f"t{i}" for i in range(27))]
    writer = gguf.GGUFWriter(path, "llama")
    for tell, value in (
        (writer.add_context_length, 256), (writer.add_embedding_length, width), (writer.add_block_count, 2),
        (writer.add_feed_forward_length, inner), (writer.add_head_count, heads), (writer.add_head_count_kv, keys),
        (writer.add_rope_dimension_count, width // heads), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, len(tokens)), (writer.add_tokenizer_model, "gpt2"), (writer.add_token_list, tokens),
        (writer.add_token_types, [3, 3, *[1] * (len(tokens) - 2)]), (writer.add_token_merges, ["a b"]),
        (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 1),
    ):  # fmt: skip
        tell(value)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {
            "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (width // 2, width),
            "attn_v": (width // 2, width), "attn_output": (width, width), "ffn_gate": (inner, width),
            "ffn_up": (inner, width), "ffn_down": (width, inner),
        }.items()}  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        values = _values(name, shape, generator).numpy().astype(numpy.float32)
        of = kind if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, vocab = settings["hidden_size"], settings["intermediate_size"], settings["vocab_size"]
    queries = settings["num_attention_heads"] * settings["head_dim"]
    keys = settings["num_key_value_heads"] * settings["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for layer in range(settings["num_hidden_layers"]):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    if not settings["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def _values(name: str, shape: tuple[int, ...], generator: Any) -> Any:
    import torch

    values = torch.randn(shape, generator=generator)
    return 1 + 0.05 * values if name.endswith("norm.weight") else 0.1 * values


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "unk_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return len(vocabulary)
