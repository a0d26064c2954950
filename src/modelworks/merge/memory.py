"""A sink for a merge that stays in memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.weights.reader import DTYPES
from modelworks.weights.writer import Planned, bytes_of

if TYPE_CHECKING:
    from torch import Tensor

# Every tensor begins at a multiple of this, as the widest of its elements wants.
_ALIGNMENT = 64


class MemorySink:
    """Takes tensors, or pieces of them, in any order, from forks of this process too."""

    def __init__(self, planned: Sequence[Planned]) -> None:
        self._places: dict[str, tuple[Planned, int]] = {}
        size = 0
        for tensor in planned:
            self._places[tensor.name] = (tensor, size)
            size += -(-tensor.size_bytes // _ALIGNMENT) * _ALIGNMENT
        self._memory = mmap.mmap(-1, max(size, 1))

    def write(self, name: str, tensor: Tensor | memoryview, start: int) -> None:
        planned, offset = self._places[name]
        view = tensor if isinstance(tensor, memoryview) else bytes_of(tensor)
        at = offset + start * DTYPES[planned.dtype][1]
        self._memory[at : at + len(view)] = view

    def tensors(self) -> dict[str, Tensor]:
        """What was written, in its own dtype, by name; the memory is free again when the last of them is gone."""
        import torch

        found = {}
        for name, (planned, offset) in self._places.items():
            dtype = getattr(torch, DTYPES[planned.dtype][0])
            if planned.elements:
                flat = torch.frombuffer(self._memory, dtype=dtype, count=planned.elements, offset=offset)
            else:
                flat = torch.empty(0, dtype=dtype)
            found[name] = flat.view(planned.shape)
        return found
