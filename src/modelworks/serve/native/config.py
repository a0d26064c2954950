"""A checkpoint's config.json, read into the few numbers that a Llama-shaped forward pass needs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.nouns import JsonObject, JsonValue

GEMMA = "GemmaForCausalLM"
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", GEMMA)
_ROPE_TYPES = ("default", "linear", "llama3")


class NotNative(Unsupported):
    """A model that transformers may compute, but not this engine's own forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One model's sizes and the few ways in which Llama-shaped models differ."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocab: int
    max_context: int
    norm_epsilon: float
    tied: bool
    rope: JsonObject
    ends: frozenset[int]
    # Gemma: gelu in place of silu, norms that store w - 1, embeddings times the root of the width
    gemma: bool = False

    @property
    def group(self) -> int:
        """Query heads to each key/value head."""
        return self.heads // self.kv_heads


def read_shape(folder: Path) -> Shape:
    """Read config.json and generation_config.json.

    Raises:
        NotNative: naming what this engine has no forward pass for.
        Unsupported: naming why nobody else has one either.
    """
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    _refuse_what_differs(folder, config)
    heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
    context = _whole(config, "max_position_embeddings")
    return Shape(
        layers=_whole(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_size=_whole(config, "head_dim", hidden // heads),
        inner=_whole(config, "intermediate_size"),
        vocab=_whole(config, "vocab_size"),
        # Beyond its window a model with sliding attention would see other tokens than it was taught to.
        max_context=min(context, _window(config) or context),
        norm_epsilon=float(str(config.get("rms_norm_eps", 1e-6))),
        tied=bool(config.get("tie_word_embeddings", config.get("architectures") == [GEMMA])),
        rope=_rope(folder, config),
        ends=_ids(generation.get("eos_token_id")) or _ids(config.get("eos_token_id")),
        gemma=config.get("architectures") == [GEMMA],
    )


def rotary_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine, each (length, head_size) float32.

    The sine's first half is negative, so that rotating is `x * cos + roll(x, half) * sin`.
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32), _frequencies(shape))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _frequencies(shape: Shape) -> Tensor:
    rope = shape.rope
    theta = float(str(rope["rope_theta"]))
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.int64).float() / shape.head_size
    frequencies = 1.0 / theta**exponents
    if rope["rope_type"] == "linear":
        return frequencies / float(str(rope["factor"]))
    if rope["rope_type"] == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


def _llama3(frequencies: Tensor, rope: JsonObject) -> Tensor:
    """Stretch the slow rotations by `factor`, leave the fast ones, blend between (Llama 3.1)."""
    factor, low, high, original = (
        float(str(rope[key]))
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    lengths = 2 * math.pi / frequencies
    blend = ((original / lengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def _refuse_what_differs(folder: Path, config: JsonObject) -> None:
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    if names and names[0].endswith("ForSequenceClassification"):
        raise Unsupported(f"{folder} is a reward model: it rates texts and writes none; name it as params.reward_model")
    if "quantization_config" in config:
        raise Unsupported(f"{folder} is quantised; the native engine serves float32, float16 and bfloat16 weights")
    if not names or names[0] not in SUPPORTED:
        found = ", ".join(names) or f"model_type {config.get('model_type')}"
        raise NotNative(f"{folder}: the native engine cannot run {found}; it runs {', '.join(SUPPORTED)}")
    # Gemma's older "hidden_act": "gelu" always meant the approximation
    if names[0] != GEMMA and config.get("hidden_act", "silu") != "silu":
        raise NotNative(f"{folder}: activation {config['hidden_act']!r}; the native engine has silu only")


def _rope(folder: Path, config: JsonObject) -> JsonObject:
    """Both spellings: `rope_parameters`, and the older `rope_theta` with `rope_scaling`."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(found) if isinstance(found, dict) else {}
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if rope["rope_type"] not in _ROPE_TYPES:
        raise NotNative(f"{folder}: rotary scaling {rope['rope_type']!r}; supported: {', '.join(_ROPE_TYPES)}")
    return rope


def _window(config: JsonObject) -> int | None:
    window = config.get("sliding_window")
    return int(window) if isinstance(window, int) and config.get("use_sliding_window", True) else None


def _ids(value: JsonValue) -> frozenset[int]:
    values = value if isinstance(value, list) else [value]
    return frozenset(item for item in values if isinstance(item, int))


def _whole(config: JsonObject, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or value < 1:
        raise Invalid(f"config.json: {key} is {value!r}; a whole number is needed")
    return value


def _read_json(path: Path) -> JsonObject:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Invalid(f"{path} is missing; this is no model folder") from None
    except ValueError as error:
        raise Invalid(f"{path} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Invalid(f"{path} is not a JSON object")
    return body
