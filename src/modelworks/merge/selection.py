"""The largest changes of a tensor, exactly that many: found by counting bit patterns, without sorting or holding it."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from modelworks.merge.arrays import KEPT_ELEMENTS, at_hand, bare, is_numpy, library

if TYPE_CHECKING:
    from modelworks.merge.arrays import Array
    from modelworks.merge.method import Piece, TensorLook

# What is kept of the changes in a piece: (M, N) float32 of its own, 0 where a change is dropped.
Keep: TypeAlias = "Callable[[Piece], Array]"

# Of a float32 without its sign, as whole numbers in the order of the magnitudes: 15 upper and 16 lower bits.
_UPPER, _LOWER = 1 << 15, 1 << 16
_MAGNITUDE = 0x7FFFFFFF

# A tensor of no more elements is ordered as a whole: it is held anyway while it is merged.
_WHOLE = KEPT_ELEMENTS
# Of a larger one's sample there are at least so many elements; they are so far apart: by primes, not to follow a
# matrix' columns.
_SAMPLE = 1 << 15
_STRIDES = (1, 3, 5, 11, 23, 47)
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

    def above(self, row: Array, start: int, out: Array) -> None:
        """Copy what is above to `out`, the rest as zeros; `start` is the place of the row's first element."""
        head = min(max(self.place + 1 - start, 0), len(row))
        bounds = (max(_pattern(self.threshold) - 1, 0), _pattern(self.threshold))
        parts = (slice(head), slice(head, None))
        for part, bound in zip(parts, bounds if self.first_above else bounds[::-1], strict=True):
            if len(row[part]):
                _shrink(bare(row[part]), bound, bare(out[part]))


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
    kept = library(piece.deltas).empty_like(piece.deltas)
    for row, out, (low, high), some in zip(piece.deltas, kept, cuts, any_kept, strict=True):
        if not some or low is None:
            out[:] = row if some else 0
        else:
            low.above(row, piece.start, out)
        if some and high is not None:
            dropped = library(row).empty_like(row)
            high.above(out, piece.start, dropped)
            out -= dropped
    return kept


def _shrink(row: Array, bound: int, out: Array) -> None:
    """Copy to `out` what has a magnitude beyond that of a bit pattern, the rest as zeros."""
    lib = library(row)
    bits, kept = row.view(lib.int32), out.view(lib.int32)
    lib.bitwise_and(bits, _MAGNITUDE, out=kept)
    lib.subtract(lib.asarray(bound, dtype=lib.int32), kept, out=kept)
    kept >>= 31  # 1 throughout where it was negative
    kept &= bits


def find_cuts(look: TensorLook, wanted: Sequence[tuple[int, int]], first_above: bool) -> list[Cut]:
    """Cut so that exactly `count` elements of `row` are below, for each (row, count) that is wanted.

    Reads a small tensor once, a larger one twice, and up to three times more where magnitudes are so distributed that
    the sample misleads.

    Args:
        wanted: counts from 1 to the tensor's size - 1.
        first_above: whether of equal magnitudes the first elements are above.
    """
    if not wanted:
        return []
    if look.size <= _WHOLE:
        return _order(look, wanted, first_above)
    found = _collect(look, wanted, _estimate(look, wanted), first_above)
    missed = [index for index, cut in enumerate(found) if cut is None]
    counted = dict(zip(missed, _count(look, [wanted[index] for index in missed], first_above), strict=True))
    return [cut or counted[index] for index, cut in enumerate(found)]


def _order(look: TensorLook, wanted: Sequence[tuple[int, int]], first_above: bool) -> list[Cut]:
    """Partition all magnitudes: for what is in memory this is faster than to look for a few."""
    import numpy as np

    pieces = list(look.pieces())
    found = []
    for row, count in wanted:
        # Whole numbers are partitioned in half the time of floats.
        patterns = np.concatenate([_patterns(piece.deltas[row]) for piece in pieces])
        patterns.partition(count)
        pattern = patterns[count]
        equal = [int(np.count_nonzero(part == pattern)) for part in (patterns[:count], patterns[count:])]
        found.append((row, int(pattern), equal[0], sum(equal)))
    return _cuts(look, found, first_above)


def _cuts(look: TensorLook, found: Sequence[tuple[int, int, int, int]], first_above: bool) -> list[Cut]:
    """Cut at (row, pattern, how many of its elements are below, of how many)."""
    places = _find_places(
        look,
        [(row, pattern, _first(below, count, first_above) if pattern else 0) for row, pattern, below, count in found],
    )
    nowhere = look.size if first_above else -1
    return [
        Cut(_value(pattern), nowhere if place is None else place, first_above)
        for (_, pattern, _, _), place in zip(found, places, strict=True)
    ]


def _first(below: int, count: int, first_above: bool) -> int:
    """How many of `count` equal elements come first, on one side; 0 where all are above."""
    return (count - below if first_above else below) if below else 0


def _estimate(look: TensorLook, wanted: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Two magnitudes for each cut, between which it almost certainly is, by a sample from all over the tensor."""
    every = _EVERY if look.size > _LARGE else 1
    # The larger the tensor, the closer the bounds must be for what is between them to be held.
    least = max(_SAMPLE, look.size >> 8) * every
    stride = max(stride for stride in _STRIDES if stride == 1 or stride * least <= look.size)
    sampled = [abs(at_hand(piece.deltas[:, ::stride])) for piece in look.pieces(every)]
    rows = sort_rows(library(sampled[0]).concatenate(sampled, 1))
    last = rows.shape[1] - 1
    bounds = []
    for row, count in wanted:
        share = count / look.size
        place, margin = share * last, 6 * (share * (1 - share) * last) ** 0.5 + 1
        low, high = int(place - margin), int(place + margin) + 1
        bounds.append((float(rows[row, low]) if low > 0 else 0.0, float(rows[row, high]) if high < last else math.inf))
    return bounds


def _collect(
    look: TensorLook, wanted: Sequence[tuple[int, int]], bounds: Sequence[tuple[float, float]], first_above: bool
) -> list[Cut | None]:
    """Find the cuts among what is between the bounds; None where they are not there, or too much is."""
    import numpy as np

    # One buffer for all: many small ones, held while pieces come and go, would scatter over the heap.
    most = min(max(look.size // 4, _SAMPLE), _MOST_INSIDE)
    all_places = np.empty((len(wanted), most), np.int64)
    all_values = np.empty((len(wanted), most), np.float32)
    below, inside = [0] * len(wanted), [0] * len(wanted)
    for piece in look.pieces():
        for index, ((row, _), (low, high)) in enumerate(zip(wanted, bounds, strict=True)):
            fewer, places, values = _where(bare(piece.deltas[row]), low, high)
            below[index] += fewer
            span = slice(inside[index], inside[index] + len(places))
            inside[index] = span.stop
            if span.stop <= most:
                all_places[index, span] = places
                all_places[index, span] += piece.start
                all_values[index, span] = values
    cuts: list[Cut | None] = []
    for index, (_, count) in enumerate(wanted):
        rank = count - below[index]
        if not 0 <= rank < inside[index] <= most:
            cuts.append(None)
            continue
        places, values = all_places[index, : inside[index]], all_values[index, : inside[index]]
        threshold = np.partition(values, rank)[rank]
        equal = places[values == threshold]
        first = _first(rank - int((values < threshold).sum()), len(equal), first_above) if threshold else 0
        place = int(equal[first - 1]) if first else look.size if first_above else -1
        cuts.append(Cut(float(threshold), place, first_above))
    return cuts


def _count(look: TensorLook, wanted: Sequence[tuple[int, int]], first_above: bool) -> list[Cut]:
    """The same for any magnitudes, and in little memory: by the upper bits, the lower bits, and the place."""
    if not wanted:
        return []
    upper = _count_upper(look)
    bins = [_descend(upper[row], count) for row, count in wanted]
    lower = _count_lower(look, [(row, upper_bits) for (row, _), (upper_bits, _) in zip(wanted, bins, strict=True)])
    found = []
    for (row, _), (upper_bits, rest), counts in zip(wanted, bins, lower, strict=True):
        lower_bits, below = _descend(counts, rest)
        found.append((row, upper_bits * _LOWER + lower_bits, below, int(counts[lower_bits])))
    return _cuts(look, found, first_above)


def _count_upper(look: TensorLook) -> Array:
    """How often each pattern of upper bits occurs in each row, as (M, 32768)."""
    import numpy as np

    return sum(
        np.stack([np.bincount(_patterns(row) >> 16, minlength=_UPPER) for row in piece.deltas])
        for piece in look.pieces()
    )


def _count_lower(look: TensorLook, bins: Sequence[tuple[int, int]]) -> list[Array]:
    """How often each pattern of lower bits occurs among a row's elements of the given upper bits."""
    import numpy as np

    totals = [np.zeros(_LOWER, np.int64) for _ in bins]
    for piece in look.pieces():
        for total, (row, upper) in zip(totals, bins, strict=True):
            patterns = _patterns(piece.deltas[row])
            total += np.bincount(patterns[patterns >> 16 == upper] & (_LOWER - 1), minlength=_LOWER)
    return totals


def _find_places(look: TensorLook, wanted: Sequence[tuple[int, int, int]]) -> list[int | None]:
    """Where the count-th element of that pattern is, for each (row, pattern, count); None for a count of 0."""
    import numpy as np

    places: list[int | None] = [None] * len(wanted)
    left = {index: count for index, (_, _, count) in enumerate(wanted) if count}
    for piece in look.pieces() if left else ():
        for index, count in list(left.items()):
            row, pattern, _ = wanted[index]
            equal = _patterns(piece.deltas[row]) == pattern
            left[index] -= int(np.count_nonzero(equal))
            if left[index] <= 0:
                places[index] = piece.start + int(np.flatnonzero(equal)[count - 1])
                del left[index]
        if not left:
            break
    return places


def _descend(counts: Array, below: int) -> tuple[int, int]:
    """The pattern of the first element above, and how many elements of that pattern are below."""
    sums = counts.cumsum()
    pattern = int(sums.searchsorted(below, side="right"))
    return pattern, below - int(sums[pattern] - counts[pattern])


def _patterns(row: Array) -> Array:
    """Of every change its magnitude's bits, as whole numbers in main memory."""
    import numpy as np

    return abs(at_hand(row)).view(np.int32)


def _where(row: Array, low: float, high: float) -> tuple[int, Array, Array]:
    """How many magnitudes are less than `low`; places and values of those that are not, nor more than `high`."""
    lib = library(row)
    magnitudes = abs(row)
    inside = magnitudes >= low
    fewer = len(row) - int(lib.count_nonzero(inside))
    inside &= magnitudes <= high
    places = lib.flatnonzero(inside) if is_numpy(row) else lib.nonzero(inside).view(-1)
    return fewer, at_hand(places), at_hand(magnitudes[places])


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
