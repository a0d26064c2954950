"""What the cache still holds of sequences that have ended, so that the next one need not read the same again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modelworks.serve.native.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Held:
    """The tokens whose keys and values are in `slot`, as the weights of that adapter made them."""

    slot: int
    adapter: str | None
    tokens: list[int]

    def shared(self, sequence: Sequence) -> int:
        """How many of a sequence's first tokens are here; its last one is always computed."""
        if self.adapter != sequence.adapter or sequence.reads_all:
            return 0
        last = min(len(self.tokens), len(sequence.tokens) - 1)
        if self.tokens[:last] == sequence.tokens[:last]:
            return last
        return next(at for at in range(last) if self.tokens[at] != sequence.tokens[at])


class Prefixes:
    """Slots of ended sequences, the one that was of use least recently first."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def keep(self, held: Held) -> None:
        if held.tokens:
            self._held[held.slot] = held

    def touch(self, slot: int) -> None:
        if slot in self._held:
            self._held[slot] = self._held.pop(slot)

    def take(self, slot: int | None = None) -> Held | None:
        """Give up what a slot holds; without one, the slot that was of use least recently."""
        return self._held.pop(next(iter(self._held)) if slot is None else slot, None)

    def forget(self, adapter: str | None = None) -> None:
        """Drop what an adapter's weights made, or everything."""
        self._held = {held.slot: held for held in self if adapter not in (None, held.adapter)}

    def pack(self, count: int) -> Iterable[tuple[Held, int]]:
        """Keep the last `count` in the lowest slots; yield what has to move where, in an order that harms nothing."""
        kept = sorted(list(self)[-count:] if count else [], key=lambda held: held.slot)
        moves = {held.slot: at for at, held in enumerate(kept)}
        moved = [(held, moves[held.slot]) for held in kept if moves[held.slot] != held.slot]
        self._held = {
            moves[held.slot]: Held(moves[held.slot], held.adapter, held.tokens) for held in self if held.slot in moves
        }
        return moved
