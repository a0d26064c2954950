"""Weights from safetensors into the form that computes fastest: fused, packed, in the engine's precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modelworks.core.errors import Invalid
from modelworks.serve.native.config import Shape

if TYPE_CHECKING:
    from typing import Any

QKV, OUT, GATE_UP, DOWN = "qkv", "out", "gate_up", "down"
# Which projections of a layer are computed in one product, by the names they have in a checkpoint.
FUSED: dict[str, tuple[str, ...]] = {
    QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    OUT: ("self_attn.o_proj",),
    GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
    DOWN: ("mlp.down_proj",),
}


class Linear:
    """`x @ weight.T + bias`. On a CPU the weight is laid out once for oneDNN's kernels."""

    packed = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.packed = weight.device.type == "cpu" and torch._C._has_mkldnn
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return product
        return F.linear(x, self.weight, self.bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the product plus `other`, in one operation where there is one."""
        if self.packed:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
            return total
        return self(x).add_(other)

    def whole(self) -> Tensor:
        """The weight as a checkpoint has it, (out, in)."""
        return self.weight.to_dense() if self.packed else self.weight


# From a weight (out, in) and its bias.
Keep: TypeAlias = Callable[[Tensor, Tensor | None], Linear]


@dataclass(frozen=True, slots=True)
class Layer:
    attention_norm: Tensor
    mlp_norm: Tensor
    linear: dict[str, Linear]
    # Qwen3 normalises each head's query and key
    query_norm: Tensor | None
    key_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear
    # how every matrix is kept
    kept: Keep


class Source(Protocol):
    """A checkpoint's tensors by name, in the engine's precision and on its device."""

    def __contains__(self, name: str) -> bool: ...

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that is asked for once; raises Invalid if it is missing or has another shape."""


def load_weights(source: Source, shape: Shape, kept: Keep = Linear) -> Weights:
    """Take a checkpoint; a tensor at a time, so the peak is little above the result.

    Raises:
        Invalid: naming the tensor that is missing or has another shape than config.json says.
    """
    embedding = source.take("model.embed_tokens.weight", (shape.vocab, shape.hidden))
    layers = tuple(_load_layer(source, shape, index, kept) for index in range(shape.layers))
    head = embedding if shape.tied else source.take("lm_head.weight", (shape.vocab, shape.hidden))
    return Weights(embedding, layers, _norm(source, "model.norm.weight", shape), kept(head, None), kept)


def _norm(source: Source, name: str, shape: Shape) -> Tensor:
    weight = source.take(name, (shape.hidden,))
    return weight + 1 if shape.gemma else weight


def sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(out, in) of every projection of a layer, by its name in a checkpoint."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }


def _load_layer(source: Source, shape: Shape, index: int, kept: Keep) -> Layer:
    prefix, size = f"model.layers.{index}.", sizes(shape)

    def linear(names: tuple[str, ...]) -> Linear:
        weights = [source.take(f"{prefix}{name}.weight", size[name]) for name in names]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        biased = [f"{prefix}{name}.bias" in source for name in names]
        if not any(biased):
            return kept(weight, None)
        parts = [
            source.take(f"{prefix}{name}.bias", size[name][:1]) if has else weight.new_zeros(size[name][0])
            for name, has in zip(names, biased, strict=True)
        ]
        return kept(weight, torch.cat(parts))

    def head_norm(name: str) -> Tensor | None:
        full = f"{prefix}self_attn.{name}.weight"
        return source.take(full, (shape.head_size,)) if full in source else None

    return Layer(
        _norm(source, f"{prefix}input_layernorm.weight", shape),
        _norm(source, f"{prefix}post_attention_layernorm.weight", shape),
        {kind: linear(names) for kind, names in FUSED.items()},
        head_norm("q_norm"),
        head_norm("k_norm"),
    )


class MemorySource:
    """Tensors that are in memory already; each is given up as it is taken, so that its room is free again."""

    def __init__(self, tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self._tensors, self._dtype, self._device = tensors, dtype, device

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._tensors.pop(name, None)
        # A copy: they may all lie in one memory, which is free when none of them is in use.
        return _fitting("the merged model", name, tensor, shape).to(self._device, self._dtype, copy=True)


class FolderSource:
    """Every tensor of a folder by name, whatever file it is in."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        self._readers: dict[str, Callable[[], Any]] = {}
        for path in _files(folder):
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise Invalid(f"{path} cannot be read: {error}; wait until it is whole, or copy it again") from None
            for name in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - no dict, no types
                self._readers[name] = lambda file=file, name=name: file.get_tensor(name)  # type: ignore[misc] # defaults bind the loop's values

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._readers[name]() if name in self._readers else None
        return _fitting(str(self._folder), name, tensor, shape).to(self._device, self._dtype)


def _fitting(where: str, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if tensor is None:
        raise Invalid(f"{where}: tensor {name} is missing; the checkpoint is not complete")
    if tuple(tensor.shape) != shape:
        raise Invalid(f"{where}: {name} is {tuple(tensor.shape)}, but config.json makes it {shape}")
    return tensor


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = folder / "model.safetensors"
    if not single.exists():
        raise Invalid(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    return [single]
