"""Random numbers that depend on nothing but a seed, a tensor's name, a model's place and an element's index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Elements that share a key: their counters are never negative, so that shifting one right brings in zeros.
_RUN = 1 << 31


class Dice:
    """One stream of chances a model, for one tensor: the same in pieces of any size and on any device."""

    def __init__(self, seed: int, name: str, models: int) -> None:
        self._seed, self._name, self._models = seed, name, models

    def below(self, shares: Tensor, start: int, count: int) -> Tensor:
        """1 with a chance of `shares`, else 0, for the elements from `start` on.

        Args:
            shares: (M, 1) or (M, count) float32; 0 is never, 1 always.

        Returns:
            (M, count) float32.
        """
        import torch

        parts = [self._rolls(run, first, length, shares.device) for run, first, length in _runs(start, count)]
        rolls = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return rolls.lt_((shares - 0.5) * float(1 << 32))

    def _rolls(self, run: int, first: int, count: int, device: torch.device) -> Tensor:
        """(M, count) of whole numbers from -2^31 to 2^31 as float32: lowbias32 (C. Wellons) without its last shift.

        That shift changes the lower half only. The second key is ours: without it two streams would be one, shuffled.
        """
        import torch

        counters = torch.arange(first, first + count, dtype=torch.int32, device=device)
        keys = torch.tensor([self._keys(run, model) for model in range(self._models)], device=device).int()
        rows = counters ^ (keys[:, :1] & 0x7FFFFFFF)
        rows ^= rows >> 16
        rows *= 0x7FEB352D
        rows += keys[:, 1:]
        rows ^= (rows >> 15).bitwise_and_(0x1FFFF)
        rows *= 0x846CA68B - (1 << 32)
        rolls: Tensor = rows.float()
        return rolls

    def _keys(self, run: int, model: int) -> tuple[int, int]:
        said = f"{self._seed}/{run}/{model}/{self._name}".encode()
        digest = hashlib.blake2b(said, digest_size=8).digest()
        first, second = (int.from_bytes(half, "little", signed=True) for half in (digest[:4], digest[4:]))
        return first, second


def _runs(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Split elements where their keys change: (run, first counter, how many)."""
    stop = start + count
    while start < stop or not count:
        run, first = divmod(start, _RUN)
        length = min(stop - start, _RUN - first)
        yield run, first, length
        start += length
        if not count:
            return
