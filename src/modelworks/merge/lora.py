"""A LoRA adapter as it bears on a merge: which tensors of the base it changes, and by what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field, FiniteFloat

from modelworks.core.errors import Invalid, Problem
from modelworks.merge.method import PER_MODEL, Params
from modelworks.weights.reader import Checkpoint, TensorInfo
from modelworks.weights.safety import read_object

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs

# Matrix products are always made in blocks of this many rows: a product's last bit can depend on its size, and so the
# result would depend on the size of the pieces we stream.
BLOCK_ROWS = 64
PREFIX = "base_model.model."
_PARTS = {  # ending of the name: (side of the product, transposed)
    ".lora_A.weight": ("right", False),
    ".lora_B.weight": ("left", False),
    ".lora_embedding_A": ("left", True),
    ".lora_embedding_B": ("right", True),
}
_MAGNITUDE = ".lora_magnitude_vector"
# Initialisations that change the base's own weights: without those, A and B mean nothing.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one tensor: scale * left @ right; `left` is (rows, r), `right` (r, columns) after transposing."""

    left: TensorInfo
    right: TensorInfo
    transposed: bool
    scale: float
    # DoRA's length of every row of the changed matrix (Liu et al. 2024, arXiv:2402.09353).
    magnitude: TensorInfo | None = None

    @property
    def shape(self) -> tuple[int, int]:
        if self.transposed:
            return self.left.shape[1], self.right.shape[0]
        return self.left.shape[0], self.right.shape[1]


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor that the adapter brings whole, in place of the base's."""

    info: TensorInfo

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape


Change: TypeAlias = LowRank | Saved


class AdapterParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on an adapter's change; may be negative", json_schema_extra=PER_MODEL
    )


class LowRankReader:
    """Reads a LoRA's changes; keeps the two factors of the tensor at hand."""

    def __init__(self, checkpoint: Checkpoint, changes: Mapping[str, Change]) -> None:
        self._checkpoint = checkpoint
        self._changes = changes
        self._name = ""
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None

    def read(self, name: str, start: int, stop: int) -> torch.Tensor | None:
        """Return elements `start` to `stop` of what is added, float32 and flat, or None where nothing is.

        Both ends lie on a block of rows or at the end of the tensor.
        """
        change = self._changes.get(name)
        return self._product(name, change, start, stop) if is_added(change) else None

    def replace(self, name: str, start: int, stop: int, values: torch.Tensor) -> None:
        """Change elements `start` to `stop` of a tensor in place where the change is no mere addition."""
        import torch

        change = self._changes.get(name)
        if isinstance(change, Saved):
            values.copy_(self._checkpoint.read(change.info.name, start, stop))
        elif change is not None and change.magnitude is not None:
            columns = change.shape[1]
            rows = values.to("cpu", torch.float32) + self._product(name, change, start, stop)
            rows = rows.view(-1, columns)
            lengths = self._checkpoint.read(change.magnitude.name).float()[start // columns : stop // columns]
            for row in range(0, len(rows), BLOCK_ROWS):
                block = rows[row : row + BLOCK_ROWS]
                block *= (lengths[row : row + BLOCK_ROWS] / torch.linalg.vector_norm(block, dim=1))[:, None]
            values.copy_(rows.view(-1))

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return left and right of what is added to a tensor, the scale in the left one; None where nothing is."""
        change = self._changes.get(name)
        if not is_added(change):
            return None
        left, right = self._load(name, change)
        return left * change.scale, right

    def _product(self, name: str, change: LowRank, start: int, stop: int) -> torch.Tensor:
        import torch

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


def is_added(change: Change | None) -> TypeIs[LowRank]:
    return isinstance(change, LowRank) and change.magnitude is None


def not_low_rank(changes: Mapping[str, Change]) -> str | None:
    """What of an adapter is no sum of thin factors, if anything."""
    for name, change in changes.items():
        if not is_added(change):
            return f"{name} is saved whole" if isinstance(change, Saved) else f"{name} is changed by DoRA"
    return None


def find_changes(folder: Path, name: str, tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, Change], list[Problem]]:
    """Work out which tensor of the base each pair of factors changes, and everything that cannot be folded in.

    Args:
        name: what to call the adapter in problems.
        tensors: the adapter's own.
    """
    config = read_object(folder / "adapter_config.json")
    problems = [Problem(name, what, "fold it into its base with PEFT first") for what in _unsupported(config)]
    sides: dict[str, dict[str, tuple[TensorInfo, bool]]] = {}
    changes: dict[str, Change] = {}
    saved = config.get("modules_to_save") or []
    for key, info in tensors.items():
        module, _, last = key.removeprefix(PREFIX).rpartition(".")
        # By the end of the name, as PEFT does: "norm" means every input_layernorm as well.
        if isinstance(saved, list) and ".lora_" not in key and module.endswith(tuple(map(str, saved))):
            changes[f"{module}.{last}"] = Saved(info)
            continue
        if key.endswith(_MAGNITUDE) and key.startswith(PREFIX):
            continue  # found again from its factors
        ending = next((ending for ending in _PARTS if key.endswith(ending)), None)
        if ending is None or not key.startswith(PREFIX) or len(info.shape) != 2:
            problems.append(
                Problem(name, f"{key} is not part of a plain LoRA", "train without it, or fold it in first")
            )
            continue
        side, transposed = _PARTS[ending]
        sides.setdefault(key[len(PREFIX) : -len(ending)], {})[side] = (info, transposed)
    for module, parts in sorted(sides.items()):
        if len(parts) != 2:
            problems.append(Problem(name, f"{module} has only one of its two factors", "the adapter is incomplete"))
            continue
        (left, transposed), (right, _) = parts["left"], parts["right"]
        magnitude = tensors.get(f"{PREFIX}{module}{_MAGNITUDE}")
        if transposed and magnitude is not None:
            problems.append(Problem(name, f"{module} is an embedding under DoRA", "fold it in with PEFT first"))
            continue
        one, other = (left.shape[0], right.shape[1]) if transposed else (left.shape[1], right.shape[0])
        if not one or one != other:
            problems.append(Problem(name, f"{module} has factors of rank {one} and {other}", "the adapter is damaged"))
            continue
        scale = _scale(config, module, one)
        changes[f"{module}.weight"] = LowRank(left, right, transposed, scale, magnitude)
    return changes, problems


def _unsupported(config: Mapping[str, object]) -> list[str]:
    found = [
        f"{key} is set, which is not a plain LoRA"
        for key in (
            "fan_in_fan_out",
            "use_qalora",
            "use_bdlora",
            "target_parameters",
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
