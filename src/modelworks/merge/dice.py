"""Random numbers that depend on nothing but a seed, a tensor's name, a model's place and an element's index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelworks.core import kernels
from modelworks.merge.arrays import Array, floats, library

if TYPE_CHECKING:
    from modelworks.merge.method import Change

# Elements that share a key: their counters are never negative, so that shifting one right brings in zeros.
_RUN = 1 << 31


class Dice:
    """One stream of chances a model, for one tensor: the same in pieces of any size and on any device."""

    def __init__(self, seed: int, name: str, models: int) -> None:
        self._seed, self._name, self._models = seed, name, models

    def below(self, shares: Array, start: int, count: int) -> Array:
        """True with a chance of `shares` for the elements from `start` on.

        Args:
            shares: (M, 1) or (M, count) float32; 0 is never, 1 always.

        Returns:
            (M, count) bool.
        """
        lib = library(shares)
        bounds = (shares - 0.5) * float(1 << 32)
        below = lib.empty((self._models, count), dtype=lib.bool, device=shares.device)
        for run, first, length in _runs(start, count):
            here = slice(run * _RUN + first - start, run * _RUN + first - start + length)
            for bound, out, rolls in zip(bounds, below, self._rolls(run, first, length, below), strict=True):
                lib.less(floats(rolls, rolls), bound[here] if len(bound) > 1 else bound, out=out[here])
        return below

    def keep(self, changes: Sequence[Change], shares: Array, start: int, divides: bool, out: Array) -> None:
        """Copy each change with a chance of its model's share, divided by that if asked to; zeros for the others.

        The same as multiplying by what is `below` shares of (M, 1), in one pass.
        """
        for run, first, length in _runs(start, out.shape[1]):
            here = slice(run * _RUN + first - start, run * _RUN + first - start + length)
            for model, ((values, base), share, row) in enumerate(zip(changes, shares[:, 0], out, strict=True)):
                key, second = self._keys(run, model)
                numbers = floats([(share - 0.5) * float(1 << 32), max(share, 2.0**-32) if divides else 1.0], out)
                given = values[here], 0 if base is None else base[here], length, first, key & 0x7FFFFFFF, second
                kernels.call("drop", *given, numbers, row[here])

    def _rolls(self, run: int, first: int, count: int, beside: Array) -> Iterator[Array]:
        """One model after the other, whole numbers from -2^31 to 2^31: lowbias32 (C. Wellons) without its last shift.

        That shift changes the lower half only. The second key is ours: without it two streams would be one, shuffled.
        """
        lib = library(beside)
        counters = lib.arange(first, first + count, dtype=lib.int32, device=beside.device)
        counters ^= counters >> 16
        for model in range(self._models):
            start, second = self._keys(run, model)
            start &= 0x7FFFFFFF
            rolls = counters ^ (start ^ start >> 16)  # as if it had been shifted with the key
            rolls *= 0x7FEB352D
            rolls += second
            # With zeros from the left; whole numbers are shifted with their sign.
            rolls ^= (rolls >> 15) & 0x1FFFF
            rolls *= 0x846CA68B - (1 << 32)
            yield rolls

    def _keys(self, run: int, model: int) -> tuple[int, int]:
        said = f"{self._seed}/{run}/{model}/{self._name}".encode()
        digest = hashlib.blake2b(said, digest_size=8).digest()
        first, second = (int.from_bytes(half, "little", signed=True) for half in (digest[:4], digest[4:]))
        return first, second


def _runs(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Split elements where their keys change: (run, first counter, how many)."""
    stop = start + count
    while start < stop:
        run, first = divmod(start, _RUN)
        length = min(stop - start, _RUN - first)
        yield run, first, length
        start += length
