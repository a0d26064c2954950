"""What a folder holds, by its JSON files and tensor headers alone: architecture, size, adapter rank."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from modelworks.core.errors import Invalid
from modelworks.weights.reader import DTYPES, Checkpoint
from modelworks.weights.safety import read_object


def what_is(folder: Path) -> Literal["model", "adapter"]:
    """Tell a full model from a PEFT adapter.

    Raises:
        Invalid: it is neither.
    """
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    raise Invalid(f"{folder} is neither a model nor an adapter: it has no config.json and no adapter_config.json")


def inspect_model(folder: Path) -> dict[str, Any]:
    """Describe a full checkpoint: the fields that Model adds to Artifact.

    Raises:
        Invalid: config.json or a header is missing, damaged, or says what cannot be.
    """
    config = read_object(folder / "config.json")
    with Checkpoint.open(folder) as checkpoint:
        tensors = checkpoint.tensors
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise Invalid(f'{folder / "config.json"}: architectures is missing; say e.g. ["LlamaForCausalLM"]')
    dtypes: Counter[str] = Counter()
    for info in tensors.values():
        dtypes[info.dtype] += info.elements
    if not dtypes:
        raise Invalid(f"{folder} holds no tensors")
    text = config.get("text_config")
    inner = {**config, **text} if isinstance(text, dict) else config
    return {
        "architecture": str(architectures[0]),
        "dtype": DTYPES[dtypes.most_common(1)[0][0]][0],
        "parameters": sum(info.elements for info in tensors.values()),
        "vocab_size": _count(inner, "vocab_size", folder),
        "context_length": _count(inner, "max_position_embeddings", folder),
    }


def inspect_adapter(folder: Path) -> dict[str, Any]:
    """Describe a PEFT LoRA folder: the fields that Adapter adds to Artifact, as far as the folder knows them.

    `base_name` is what the folder calls its base: a name or a path on the machine where it was trained.

    Raises:
        Invalid: it is not a LoRA, or adapter_config.json or the header is damaged.
    """
    config = read_object(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise Invalid(f"{folder}: peft_type is {config.get('peft_type')!r}; only LORA adapters are known")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        raise Invalid(f"{folder / 'adapter_config.json'}: lora_alpha is {alpha!r}; expected a number")
    targets = config.get("target_modules")
    with Checkpoint.open(folder) as checkpoint:
        parameters = sum(info.elements for info in checkpoint.tensors.values())
    return {
        "rank": _count(config, "r", folder),
        "alpha": float(alpha),
        "target_modules": tuple(sorted(targets)) if isinstance(targets, list) else (str(targets),),
        "parameters": parameters,
        "base_name": str(config.get("base_model_name_or_path") or ""),
    }


def _count(config: dict[str, object], key: str, folder: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value <= 0:
        raise Invalid(f"{folder}: {key} is {value!r} in the config; expected a positive number")
    return value
