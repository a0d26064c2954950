"""GGUF to a normal Hugging Face folder: bfloat16 safetensors, config, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelworks.core.errors import Invalid
from modelworks.weights.gguf import GgufFile, llama_config, llama_name, unpermute
from modelworks.weights.writer import CheckpointWriter, Planned

# GGUF says only which pre-tokenizer by name; transformers' converter does not know this one.
_DIGIT_SPLITTERS = {"smollm", "starcoder", "refact", "command-r"}


def convert_gguf(source: Path, folder: Path, on_bytes: Callable[[int, int], None] = lambda _done, _total: None) -> None:
    """Write the checkpoint in `source` to the empty folder `folder`, one tensor at a time.

    Args:
        on_bytes: told the bytes written so far and in all, after every tensor; may raise to stop.

    Raises:
        Invalid: the file is damaged.
        Unsupported: not a llama model, or a quantisation that is not known.
    """
    with GgufFile(source) as file:
        _write_weights(file, write_companions(file, folder), folder, on_bytes)


def write_companions(file: GgufFile, folder: Path) -> Mapping[str, Any]:
    """Write everything but the weights; return the config."""
    config = llama_config(file)
    _write_json(folder / "config.json", config)
    _write_tokenizer(file, folder)
    ids = {key: value for key, value in config.items() if key.endswith("_token_id") and value is not None}
    _write_json(folder / "generation_config.json", ids)
    return config


def _write_weights(
    file: GgufFile, config: Mapping[str, Any], folder: Path, on_bytes: Callable[[int, int], None]
) -> None:
    import torch

    plan = {name: Planned(llama_name(name), "BF16", entry.shape) for name, entry in file.tensors.items()}
    names = sorted(plan, key=lambda name: plan[name].name)
    total, done = sum(planned.size_bytes for planned in plan.values()), 0
    with CheckpointWriter(folder, [plan[name] for name in names]) as writer:
        for name in names:
            tensor = unpermute(name, file.read(name), config["num_attention_heads"], config["num_key_value_heads"])
            writer.write(plan[name].name, tensor.to(torch.bfloat16))
            done += plan[name].size_bytes
            on_bytes(done, total)


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    # These two are transformers' own GGUF path, without its slow walk over the whole file.
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    try:
        architecture, vocabulary, facts = get_gguf_tokenizer(str(file.path))
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    except (ValueError, KeyError) as error:
        raise Invalid(f"{file.path}: no tokenizer can be made from its metadata ({error})") from None
    if file.metadata.get("tokenizer.ggml.pre") in _DIGIT_SPLITTERS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.save(str(folder / "tokenizer.json"))
    special = {role: facts[role] for role in ("bos_token", "eos_token", "unk_token", "pad_token") if facts.get(role)}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": bool(facts.get("add_bos_token", False)),
            "add_prefix_space": bool(vocabulary.get("add_prefix_space", False)),
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(file.number("llama.context_length")),
            # the one class that transformers 4 and 5 both load from tokenizer.json alone
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    if template := facts.get("chat_template"):
        (folder / "chat_template.jinja").write_text(str(template), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
