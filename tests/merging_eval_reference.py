"""merging-eval's five methods over whole models in memory, written from their formulas; and models to try them on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny import tiny_llama

Weights = dict[str, Tensor]


def family(root: Path, **config: Any) -> list[Path]:
    """A base and three experts near it: changes in coarse steps, so that many are equal or cancel, and fine ones."""
    folders = [tiny_llama(root / name, 0, **config) for name in ("base", "expert-1", "expert-2", "expert-3")]
    for seed, folder in enumerate(folders[1:], 1):
        dice = torch.Generator().manual_seed(seed)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        for name, values in tensors.items():
            coarse = torch.randint(-6, 7, values.shape, generator=dice) * 0.004
            fine = torch.randint(-4000, 4001, values.shape, generator=dice) * 1e-5
            tensors[name] = (values.float() + (fine if seed == 2 else coarse)).to(values.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return folders


def load(folder: Path) -> Weights:
    return {name: values.bfloat16() for name, values in load_file(folder / "model.safetensors").items()}


def digest(weights: Weights) -> str:
    parts = [weights[name].contiguous().view(torch.uint8).numpy().tobytes() for name in sorted(weights)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def merge(method: str, base: Weights, experts: Sequence[Weights], **params: Any) -> Weights:
    """Merge; every operation on bfloat16 rounds, as torch's do."""
    scale = params.get("scaling_coefficient", 1.0)
    rate = params.get("param_value_mask_rate", 0.8)
    changes = [{name: expert[name] - base[name] for name in base} for expert in experts]
    if method == "average_merging":
        return {name: torch.stack([expert[name] for expert in experts]).mean(0) for name in base}
    if method == "task_arithmetic":
        merged = {name: scale * _one_by_one([change[name] for change in changes]) for name in base}
    elif method == "ties_merging":
        merged = {name: scale * _ties([change[name] for change in changes], rate) for name in base}
    elif method == "ties_merging_dare":
        merged = {name: scale * values for name, values in _ties_of_whole_model(changes, rate).items()}
    else:
        masked = _mask(base, changes, params)
        return merge(params.get("mask_apply_method", "average_merging"), base, masked, **params)
    return {name: (base[name] + merged[name]).bfloat16() for name in base}


def _one_by_one(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _ties(changes: Sequence[Tensor], rate: float) -> Tensor:
    kept = [_trim(change, int(change.numel() * rate)) for change in changes]
    sign = _one_by_one(kept).sign()
    sign[sign == 0] = 1
    agreeing = [torch.where(change.sign() == sign, change, 0) for change in kept]
    count = torch.stack([each != 0 for each in agreeing]).sum(0)
    return _one_by_one(agreeing) / count.float().clamp(min=1)


def _ties_of_whole_model(changes: Sequence[Weights], rate: float) -> Weights:
    shapes = {name: changes[0][name].shape for name in sorted(changes[0])}
    flat = [torch.cat([change[name].flatten() for name in shapes]) for change in changes]
    kept = torch.stack([_trim(each, int(each.numel() * rate)) for each in flat])
    sign = kept.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agreeing = torch.where((kept.sign() == sign) & (sign != 0), kept, 0)
    merged = agreeing.sum(0) / (agreeing != 0).sum(0).float().clamp(min=1)
    pieces = torch.split(merged, [shape.numel() for shape in shapes.values()])
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}


def _trim(change: Tensor, drop: int) -> Tensor:
    magnitudes = change.abs()
    return change * (magnitudes >= magnitudes.flatten().sort().values[drop - 1]) if drop else change


def _mask(base: Weights, changes: Sequence[Weights], params: Mapping[str, Any]) -> list[Weights]:
    torch.manual_seed(params.get("seed", 42))
    experts = []
    for change, rate in zip(changes, params["weight_mask_rates"], strict=True):
        expert = {}
        for name in sorted(base, key=_place):
            values = change[name]
            if params.get("mask_strategy", "random") == "random":
                masked = values * (1 - torch.bernoulli(torch.full_like(values, rate)))
            else:
                magnitudes = values.abs()
                masked = values * (magnitudes > magnitudes.flatten().sort().values[int(values.numel() * rate) - 1])
            rescales = params.get("use_weight_rescale", True) and rate != 1
            expert[name] = base[name] + (masked / (1 - rate) if rescales else masked)
        experts.append(expert)
    return experts


def _place(name: str) -> tuple[int, int, int]:
    """Where a tensor stands among a Llama's parameters."""
    parts = ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
             "input_layernorm", "post_attention_layernorm", "model.norm", "lm_head")  # fmt: skip
    part = next(place for place, part in enumerate(parts) if part in name)
    layer = int(name.split(".")[2]) if ".layers." in name else 0
    return (0, 0, 0) if part == 0 else (2, 0, part) if part > 9 else (1, layer, part)
