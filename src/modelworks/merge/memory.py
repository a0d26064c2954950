"""A sink for a merge that stays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class MemorySink:
    """Writes into tensors that exist already, by name, in their own dtype and on their own device."""

    @property
    def shared(self) -> bool:
        return False

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._flat = {name: tensor.detach().view(-1) for name, tensor in tensors.items()}

    def write(self, name: str, tensor: Tensor, start: int) -> None:
        self._flat[name][start : start + tensor.numel()].copy_(tensor.view(-1))
