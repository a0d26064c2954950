"""Keys and values of what was read and written: one slot a sequence, grown in big steps, bounded by a budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Positions are added in steps of at least this many, and at least a half more than there were.
_STEP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    layers: int
    kv_heads: int
    head_size: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * dtype.itemsize


class KvCache:
    """Per layer one tensor (2, slots, kv_heads, positions, head_size): keys, then values.

    All slots are as long as the longest one. `budget_bytes` is what they may take together, but one sequence of
    `max_context` positions always fits.
    """

    def __init__(
        self,
        shape: CacheShape,
        *,
        max_slots: int,
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
        budget_bytes: int,
    ) -> None:
        self._shape, self._max_slots, self._max_context = shape, max_slots, max_context
        self._dtype, self._device = dtype, device
        self.total_tokens = max(budget_bytes // shape.bytes_per_token(dtype), max_context)
        self.layers: list[Tensor] = []
        self.clear()

    @property
    def slots(self) -> int:
        return self.layers[0].shape[1]

    @property
    def length(self) -> int:
        return self.layers[0].shape[3]

    @property
    def used_tokens(self) -> int:
        return self.slots * self.length

    def fits(self, slots: int, length: int) -> bool:
        return slots * min(_round_up(length), self._max_context) <= self.total_tokens

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `length` positions in `slots` slots, keeping what is in these."""
        if slots <= self.slots and length <= self.length:
            return
        least = slots, min(_round_up(length), self._max_context)
        if length > self.length:
            length = min(max(least[1], _round_up(self.length * 3 // 2)), self._max_context)
        slots, length = max(slots, self.slots), max(length, self.length)
        if slots > self.slots:  # few steps, as long as the budget allows
            more = min(self._max_slots, max(slots, 2 * self.slots))
            slots = more if more * length <= self.total_tokens else slots
        self.resize(*((slots, length) if slots * length <= self.total_tokens else least))

    def resize(self, slots: int, length: int) -> None:
        """Have just so many slots of that length; what lies beyond is lost."""
        for layer, old in enumerate(self.layers):
            self.layers[layer] = self._empty(slots, length)
            old = old[:, :slots, :, :length]
            self.layers[layer][:, : old.shape[1], :, : old.shape[3]] = old

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` positions of a slot into another."""
        for layer in self.layers:
            layer[:, target, :, :count] = layer[:, source, :, :count]

    def wipe(self, slot: int) -> None:
        """Forget a slot that may hold NaN, which no mask would hold back."""
        for layer in self.layers:
            layer[:, slot].zero_()

    def clear(self) -> None:
        """Give the memory back when nobody is in it."""
        self.layers = [self._empty(1, 0) for _ in range(self._shape.layers)]

    def _empty(self, slots: int, length: int) -> Tensor:
        # zeros: a masked position still enters a product with weight 0, and 0 times a stray NaN is NaN
        size = (2, slots, self._shape.kv_heads, length, self._shape.head_size)
        return torch.zeros(size, dtype=self._dtype, device=self._device)


def _round_up(length: int) -> int:
    return -(-length // _STEP) * _STEP
