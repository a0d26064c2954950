"""The largest changes of a tensor, exactly that many: found near those of a sample, without sorting or holding it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from modelworks.core import kernels
from modelworks.merge.arrays import at_hand, bare, is_numpy, library

if TYPE_CHECKING:
    from modelworks.merge.arrays import Array
    from modelworks.merge.method import Change, Piece, TensorLook

# What is kept of the changes in a piece: (M, N) float32 of its own, 0 where a change is dropped.
Keep: TypeAlias = "Callable[[Piece], Array]"

# Of a float32 without its sign, as a whole number; these are in the order of the magnitudes.
_MAGNITUDE = 0x7FFFFFFF

# A tensor of no more elements is ordered as a whole.
_WHOLE = 1 << 16
# Of a larger one's sample there are at least so many elements; they are so far apart: by primes, not to follow a
# matrix' columns.
_SAMPLE = 1 << 15
_STRIDES = (1, 3, 5, 11, 23, 47)
# A cut is looked for so many standard deviations of the sample's share to either side.
_DEVIATIONS = 4
# Of a tensor larger than this, one piece in so many is sampled.
_LARGE, _EVERY = 1 << 22, 4
# So many elements may be held for a cut, with their places.
_MOST_INSIDE = 1 << 21


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the magnitudes of a tensor are cut in two: above and below.

    Those equal to the threshold are above up to element `place` and below behind it, or the reverse.
    """

    threshold: float
    place: int
    first_above: bool

    def above(self, change: Change, start: int, out: Array) -> None:
        """Copy what is above to `out`, the rest as zeros; `start` is the place of the change's first element."""
        values, base = change
        head = min(max(self.place + 1 - start, 0), len(values))
        bounds = (max(_pattern(self.threshold) - 1, 0), _pattern(self.threshold))
        parts = (slice(head), slice(head, None))
        for part, bound in zip(parts, bounds if self.first_above else bounds[::-1], strict=True):
            if len(values[part]):
                _shrink((values[part], None if base is None else base[part]), bound, bare(out[part]))


def keep_largest(look: TensorLook, densities: Sequence[float]) -> Keep:
    """Of each model's changes the density * size largest, at least one; of equal ones the first."""
    size = look.size
    below = [size - max(1, int(density * size)) if density > 0 else size for density in densities]
    cuts = iter(find_cuts(look, [(row, count) for row, count in enumerate(below) if 0 < count < size], True))
    each = [next(cuts) if 0 < count < size else None for count in below]
    return lambda piece: _between(piece, [(low, None) for low in each], [count < size for count in below])


def keep_middle(look: TensorLook, densities: Sequence[float], gammas: Sequence[float]) -> Keep:
    """As many of each model's changes, but for the gamma * size largest; of equal ones, those behind are the larger."""
    size = look.size
    spans = []
    for density, gamma in zip(densities, gammas, strict=True):
        count = int(density * size)
        low = max(0, size - count - int(gamma * size))
        spans.append((low, low + count) if density < 1 else (0, size))
    wanted = [(row, count) for row, span in enumerate(spans) for count in span if 0 < count < size]
    found = dict(zip(wanted, find_cuts(look, wanted, False), strict=True))
    cuts = [(found.get((row, low)), found.get((row, high))) for row, (low, high) in enumerate(spans)]
    return lambda piece: _between(piece, cuts, [low < high for low, high in spans])


def _between(piece: Piece, cuts: Sequence[tuple[Cut | None, Cut | None]], any_kept: Sequence[bool]) -> Array:
    """What is above each row's first cut and not above its second."""
    kept = piece.empty_rows()
    for place, (change, out, (low, high), some) in enumerate(zip(piece.changes, kept, cuts, any_kept, strict=True)):
        if not some or low is None:
            out[:] = piece.deltas[place] if some else 0
        else:
            low.above(change, piece.start, out)
        if some and high is not None:
            dropped = library(out).empty_like(out)
            high.above((bare(out), None), piece.start, dropped)
            out -= dropped
    return kept


def _shrink(change: Change, bound: int, out: Array) -> None:
    """Copy to `out` what has a magnitude beyond that of a bit pattern, the rest as zeros."""
    row, base = change
    if is_numpy(row):
        kernels.call("shrink", row, 0 if base is None else base, bound, out, len(row))
        return
    lib = library(row)
    bits, kept = row.view(lib.int32), out.view(lib.int32)
    lib.bitwise_and(bits, _MAGNITUDE, out=kept)
    lib.subtract(lib.asarray(bound, dtype=lib.int32), kept, out=kept)
    kept >>= 31  # 1 throughout where it was negative
    kept &= bits


@dataclass(slots=True)
class _Search:
    """For the `count`-th smallest magnitude of a row: between which bit patterns it is, and where to look for it."""

    row: int
    count: int
    low: int
    high: int
    least: int = 0
    most: int = _MAGNITUDE

    def narrow(self, below: int, inside: int, room: int) -> bool:
        """Whether what is between `low` and `high` is it, by how much is below and inside; otherwise look elsewhere."""
        width = self.high - self.low + 1
        if self.count < below:
            self.most = self.low - 1
            self.low, self.high = max(self.least, self.low - 4 * width), self.most
        elif self.count >= below + inside:
            self.least = self.high + 1
            self.low, self.high = self.least, min(self.most, self.high + 4 * width)
        elif inside > room and self.low < self.high:
            self.least, self.most, self.high = self.low, self.high, (self.low + self.high) // 2
        else:
            return True
        return False


def find_cuts(look: TensorLook, wanted: Sequence[tuple[int, int]], first_above: bool) -> list[Cut]:
    """Cut so that exactly `count` elements of `row` are below, for each (row, count) that is wanted.

    Reads a small tensor once, a larger one twice, and more often where magnitudes are so distributed that the sample
    misleads.

    Args:
        wanted: counts from 1 to the tensor's size - 1.
        first_above: whether of equal magnitudes the first elements are above.
    """
    searches = [_Search(row, count, 0, _MAGNITUDE) for row, count in wanted]
    if look.size > _WHOLE and wanted:
        _estimate(look, searches)
    cuts: dict[int, Cut] = {}
    while len(cuts) < len(wanted):
        left = [index for index in range(len(wanted)) if index not in cuts]
        found = _collect(look, [searches[index] for index in left], first_above)
        cuts |= {index: cut for index, cut in zip(left, found, strict=True) if cut is not None}
    return [cuts[index] for index in range(len(wanted))]


def _estimate(look: TensorLook, searches: Sequence[_Search]) -> None:
    """Look between two magnitudes between which each almost certainly is, by a sample from all over the tensor."""
    every = _EVERY if look.size > _LARGE else 1
    # The larger the tensor, the closer the bounds must be for what is between them to be held.
    least = max(_SAMPLE, look.size >> 8) * every
    stride = max(stride for stride in _STRIDES if stride == 1 or stride * least <= look.size)
    sampled = [abs(at_hand(piece.sampled(stride))) for piece in look.pieces(every)]
    rows = sort_rows(library(sampled[0]).concatenate(sampled, 1))
    last = rows.shape[1] - 1
    for search in searches:
        share = search.count / look.size
        place, margin = share * last, _DEVIATIONS * (share * (1 - share) * last) ** 0.5 + 1
        low, high = int(place - margin), int(place + margin) + 1
        search.low = _pattern(float(rows[search.row, low])) if low > 0 else 0
        search.high = _pattern(float(rows[search.row, high])) if high < last else _MAGNITUDE


def _collect(look: TensorLook, searches: Sequence[_Search], first_above: bool) -> list[Cut | None]:
    """Find the cuts among what is where they are looked for; None where they are not there, or too much is."""
    import numpy as np

    # One buffer for all: many small ones, held while pieces come and go, would scatter over the heap.
    room = min(max(look.size // 4, _WHOLE), _MOST_INSIDE)
    patterns, places = np.empty((len(searches), room), np.int32), np.empty((len(searches), room), np.int64)
    below, inside = [0] * len(searches), np.zeros((len(searches), 1), np.int64)
    for piece in look.pieces():
        for index, its in enumerate(searches):
            found = patterns[index], places[index], inside[index]
            below[index] += _append(piece.changes[its.row], piece.start, its.low, its.high, *found)
    nowhere = look.size if first_above else -1
    cuts: list[Cut | None] = []
    for index, its in enumerate(searches):
        held, fewer = int(inside[index, 0]), below[index]
        if not its.narrow(fewer, held, room):
            cuts.append(None)
        elif held > room:  # of one magnitude
            first = _first(fewer, held, its.count, first_above) if its.low else 0
            cuts.append(Cut(_value(its.low), _find_place(look, its, first) if first else nowhere, first_above))
        else:
            cuts.append(_cut(patterns[index, :held], places[index, :held], its.count - fewer, nowhere, first_above))
    return cuts


def _cut(patterns: Array, places: Array, rank: int, nowhere: int, first_above: bool) -> Cut:
    """Where the element of that rank among these is the first above."""
    import numpy as np

    pattern = int(np.partition(patterns, rank)[rank])
    equal = places[patterns == pattern]
    first = _first(int((patterns < pattern).sum()), len(equal), rank, first_above) if pattern else 0
    return Cut(_value(pattern), int(equal[first - 1]) if first else nowhere, first_above)


def _first(below: int, equal: int, count: int, first_above: bool) -> int:
    """How many of the equal elements come first, on one side, so that `count` are below; 0 where all are above."""
    own = count - below
    return (equal - own if first_above else own) if own else 0


def _find_place(look: TensorLook, search: _Search, count: int) -> int:
    """Where the count-th element of the magnitude looked for is."""
    import numpy as np

    for piece in look.pieces():
        equal = np.flatnonzero(abs(at_hand(piece.deltas[search.row])).view(np.int32) == search.low)
        if count <= len(equal):
            return piece.start + int(equal[count - 1])
        count -= len(equal)
    raise ValueError(f"{look.name} changed while it was read")


def _append(change: Change, start: int, low: int, high: int, patterns: Array, places: Array, inside: Array) -> int:
    """How many magnitudes are less than `low`; those that are not, nor more than `high`, are put behind the others.

    Args:
        inside: (1), how many there are already, and then are; what does not fit is counted only.
    """
    row, base = change
    if is_numpy(row):
        given = row, 0 if base is None else base, len(row), low, high, start
        return kernels.call("between", *given, patterns, places, inside, len(patterns))
    lib = library(row)
    magnitudes = row.view(lib.int32) & _MAGNITUDE
    found = ((magnitudes >= low) & (magnitudes <= high)).nonzero().view(-1)
    span = slice(int(inside[0]), int(inside[0]) + len(found))
    inside[0] = span.stop
    if span.stop <= len(patterns):
        patterns[span], places[span] = at_hand(magnitudes[found]), at_hand(found + start)
    return int((magnitudes < low).sum())


def sort_rows(rows: Array) -> Array:
    """The elements of each row in their order."""
    import numpy as np

    if is_numpy(rows):  # and ten times faster than torch
        return np.sort(rows, axis=1)
    return library(rows).from_numpy(np.sort(rows.numpy(), axis=1)) if rows.is_cpu else rows.sort(1).values


def _value(pattern: int) -> float:
    return float(struct.unpack("<f", struct.pack("<i", pattern))[0])


def _pattern(magnitude: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", magnitude))[0])
