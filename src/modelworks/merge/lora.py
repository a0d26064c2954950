"""A LoRA adapter as it bears on a merge: which tensors of the base it changes, and by what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.core.errors import Invalid, Problem
from modelworks.weights.reader import Checkpoint, TensorInfo
from modelworks.weights.safety import read_object

if TYPE_CHECKING:
    import torch

# Matrix products are always made in blocks of this many rows: a product's last bit can depend on its size, and so the
# result would depend on the size of the pieces we stream.
BLOCK_ROWS = 64
_PREFIX = "base_model.model."
_PARTS = {  # ending of the name: (side of the product, transposed)
    ".lora_A.weight": ("right", False),
    ".lora_B.weight": ("left", False),
    ".lora_embedding_A": ("left", True),
    ".lora_embedding_B": ("right", True),
}
# Initialisations that change the base's own weights: without those, A and B mean nothing.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one tensor: scale * left @ right; `left` is (rows, r), `right` (r, columns) after transposing."""

    left: TensorInfo
    right: TensorInfo
    transposed: bool
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        if self.transposed:
            return self.left.shape[1], self.right.shape[0]
        return self.left.shape[0], self.right.shape[1]

    @property
    def ranks(self) -> tuple[int, int]:
        return (
            (self.left.shape[0], self.right.shape[1]) if self.transposed else (self.left.shape[1], self.right.shape[0])
        )


class LowRankReader:
    """Reads a LoRA's changes; keeps the two factors of the tensor at hand."""

    def __init__(self, checkpoint: Checkpoint, changes: Mapping[str, LowRank]) -> None:
        self._checkpoint = checkpoint
        self._changes = changes
        self._name = ""
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def read(self, name: str, start: int, stop: int) -> torch.Tensor | None:
        """Return elements `start` to `stop` of the change, float32 and flat, or None where there is none.

        Both ends lie on a block of rows or at the end of the tensor.
        """
        import torch

        change = self._changes.get(name)
        if change is None:
            return None
        left, right = self._load(name, change)
        columns = right.shape[1]
        first, last = start // columns, stop // columns
        delta = torch.empty(last - first, columns)
        for row in range(first, last, BLOCK_ROWS):
            end = min(row + BLOCK_ROWS, last)
            torch.mm(left[row:end], right, out=delta[row - first : end - first])
        return delta.mul_(change.scale).view(-1)

    def _load(self, name: str, change: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
        if self._factors is None or self._name != name:
            left, right = (self._checkpoint.read(info.name).float() for info in (change.left, change.right))
            self._factors = (left.T.contiguous(), right.T.contiguous()) if change.transposed else (left, right)
            self._name = name
        return self._factors


def find_changes(
    folder: Path, name: str, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, LowRank], list[Problem]]:
    """Work out which tensor of the base each pair of factors changes, and everything that cannot be folded in.

    Args:
        name: what to call the adapter in problems.
        tensors: the adapter's own.
    """
    config = read_object(folder / "adapter_config.json")
    problems = [Problem(name, what, "fold it into its base with PEFT first") for what in _unsupported(config)]
    sides: dict[str, dict[str, tuple[TensorInfo, bool]]] = {}
    for key, info in tensors.items():
        ending = next((ending for ending in _PARTS if key.endswith(ending)), None)
        if ending is None or not key.startswith(_PREFIX) or len(info.shape) != 2:
            problems.append(
                Problem(name, f"{key} is not part of a plain LoRA", "train without it, or fold it in first")
            )
            continue
        side, transposed = _PARTS[ending]
        sides.setdefault(key[len(_PREFIX) : -len(ending)], {})[side] = (info, transposed)
    changes: dict[str, LowRank] = {}
    for module, parts in sorted(sides.items()):
        if len(parts) != 2:
            problems.append(Problem(name, f"{module} has only one of its two factors", "the adapter is incomplete"))
            continue
        (left, transposed), (right, _) = parts["left"], parts["right"]
        change = LowRank(
            left, right, transposed, _scale(config, module, (right.shape[1] if transposed else right.shape[0]))
        )
        if change.ranks[0] != change.ranks[1]:
            problems.append(Problem(name, f"{module} has factors of rank {change.ranks[0]} and {change.ranks[1]}"))
            continue
        changes[f"{module}.weight"] = change
    return changes, problems


def _unsupported(config: Mapping[str, object]) -> list[str]:
    found = [
        f"{key} is set, which is not a plain LoRA"
        for key in (
            "use_dora",
            "modules_to_save",
            "fan_in_fan_out",
            "lora_bias",
            "layer_replication",
            "trainable_token_indices",
        )
        if config.get(key)
    ]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type is {config.get('peft_type')!r}, not LORA")
    if config.get("bias", "none") != "none":
        found.append(f"bias is {config['bias']!r}, so it changes the base's biases")
    initial = str(config.get("init_lora_weights", True)).lower()
    if initial.startswith(_CHANGES_BASE):
        found.append(f"init_lora_weights is {initial!r}, which changes the base's own weights")
    return found


def _scale(config: Mapping[str, object], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732); patterns as PEFT reads them."""
    import re2

    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re2.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    if not isinstance(alpha, int | float):
        raise Invalid(f"adapter_config.json: lora_alpha is {alpha!r} for {module}; expected a number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
