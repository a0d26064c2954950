"""Who computes what in the next step, and in which cache slot: pure bookkeeping, no tensors.

Every step decodes one token of each running answer and reads a piece of the new prompts beside it, so a new request
joins a running batch at once, and a finished one leaves its slot in the same step. What it left there serves others
that begin alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from modelworks.serve.native.prefixes import Held, Prefixes
from modelworks.serve.native.sequence import Sequence

# So many slots ended sequences may have for themselves; more only where others have left them allocated.
_KEPT = 8
# Of the cache's budget, what they may have while nobody runs: one part in so many.
_KEPT_SHARE = 4
# A prompt waits for another that is being read if it saves at least so many tokens.
_WORTH_WAITING = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Compute `count` tokens of `sequence` from its first one that is not in the cache, and `guesses` behind them."""

    sequence: Sequence
    count: int
    guesses: Rows[int] = ()

    @property
    def tokens(self) -> Rows[int]:
        return (*self.sequence.tokens[self.start : self.start + self.count], *self.guesses)

    @property
    def size(self) -> int:
        return self.count + len(self.guesses)

    @property
    def start(self) -> int:
        return self.sequence.cached

    @property
    def gives_token(self) -> bool:
        """Whether the last token known so far is among them, so that the next one can be sampled."""
        return self.start + self.count == len(self.sequence.tokens)


class Cache(Protocol):
    """What the scheduler asks of a KvCache."""

    @property
    def slots(self) -> int: ...

    @property
    def length(self) -> int: ...

    def reserve(self, slots: int, length: int) -> None: ...

    def resize(self, slots: int, length: int) -> None: ...

    def copy(self, source: int, target: int, count: int) -> None: ...

    def wipe(self, slot: int) -> None: ...


class Scheduler:
    """Holds the waiting (first come, first served) and the running sequences.

    Args:
        max_sequences: how many run together: the number of cache slots.
        tokens_per_step: how many tokens a step computes at most; long prompts are read in pieces of it.
        fits: whether the cache can hold (slots, length): all slots are as long as the longest.
    """

    def __init__(self, max_sequences: int, tokens_per_step: int, fits: Callable[[int, int], bool]) -> None:
        self._max_sequences = max_sequences
        self._tokens_per_step = max(tokens_per_step, max_sequences)
        self._fits = fits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._unread: set[Sequence] = set()  # running, but none of their pieces was computed
        self._prefixes = Prefixes()
        self._copies: list[tuple[int, int, int]] = []
        self._stained: set[int] = set()
        self._allocated = 0
        self.preempted = 0
        self.reused_tokens = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def sequences(self) -> Iterable[Sequence]:
        return (*self._running, *self._waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence, *, sound: bool = True) -> None:
        """Take a sequence out, wherever it is; its slot is free for the next step.

        Args:
            sound: whether what it left in the cache may be of use.
        """
        if sequence in self._running:
            self._running.remove(sequence)
            self._unread.discard(sequence)
            if sequence.slot is not None and sound:
                self._prefixes.keep(_held(sequence))
            elif sequence.slot is not None:
                self._stained.add(sequence.slot)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        sequence.slot = None

    def forget(self, adapter: str | None = None) -> None:
        """Use nothing any more that an adapter's weights made, or, without one, nothing at all."""
        self._prefixes.forget(adapter)

    def plan(self) -> list[Piece]:
        """Choose the pieces of the next step: one token of every running answer first, then prompts."""
        self._make_room()
        self._admit()
        pieces = [Piece(each, 1) for each in self._running if each.cached + 1 == len(each.tokens)]
        self._unread.difference_update(piece.sequence for piece in pieces)
        sources = self._sources()
        missing: dict[Sequence, int] = {}
        for sequence in self._running:
            if sequence.cached + 1 < len(sequence.tokens) and not self._waits(sequence, missing, sources):
                missing[sequence] = len(sequence.tokens) - max(sequence.cached, sources.get(sequence, _NOTHING)[1])
        for sequence, count in _shares(missing, self._tokens_per_step - len(pieces)):
            self._begin(sequence, sources.get(sequence, _NOTHING))
            pieces.append(Piece(sequence, count))
        return pieces

    def make_ready(self, cache: Cache) -> None:
        """Have the cache hold what was planned."""
        cache.reserve(*self.shape())
        self._allocated = cache.slots
        for slot in self._stained:
            if slot < cache.slots:
                cache.wipe(slot)
        for source, target, count in self._copies:
            cache.copy(source, target, count)
        self._stained, self._copies = set(), []

    def rest(self, cache: Cache) -> None:
        """Give memory back when nobody is running, but for a few of the last prefixes."""
        if cache.slots <= _KEPT and self._fits(_KEPT_SHARE * cache.slots, cache.length):
            return
        lengths = [len(held.tokens) for held in self._prefixes][-_KEPT:]
        while lengths and not self._fits(_KEPT_SHARE * len(lengths), max(lengths)):
            del lengths[0]
        for held, slot in self._prefixes.pack(len(lengths)):
            cache.copy(held.slot, slot, len(held.tokens))
        cache.resize(max(len(lengths), 1), max(lengths, default=0))
        self._allocated = cache.slots

    def shape(self, slot: int = -1, length: int = 0) -> tuple[int, int]:
        """The slots and the length that the cache needs for what it holds, and for one more sequence."""
        running = [(each.slot, len(each.tokens)) for each in self._running if each.slot is not None]
        every = [*running, *((held.slot, len(held.tokens)) for held in self._prefixes), (slot, length)]
        return max(at for at, _ in every) + 1, max(size for _, size in every)

    def _make_room(self) -> None:
        """Drop prefixes; then send the highest slot, mostly the youngest, back to the head of the queue."""
        while self._running and not self._fits(*self.shape()):
            if self._prefixes:
                self._prefixes.take()
                continue
            last = max(self._running, key=lambda sequence: sequence.slot or 0)
            if last.slot == 0:  # alone: one sequence always fits
                return
            self._running.remove(last)
            self._unread.discard(last)
            last.slot, last.cached = None, 0
            self._waiting.appendleft(last)
            self.preempted += 1

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting[0]
            slot = self._slot_for(sequence)
            while self._prefixes and not self._fits(*self.shape(slot, len(sequence.tokens))):
                self._prefixes.take()
                slot = self._slot_for(sequence)
            if self._running and not self._fits(*self.shape(slot, len(sequence.tokens))):
                return
            held = self._prefixes.take(slot)
            sequence.slot = slot
            self._running.append(self._waiting.popleft())
            self._unread.add(sequence)
            self._reuse(sequence, held.shared(sequence) if held else 0)

    def _slot_for(self, sequence: Sequence) -> int:
        """The slot of what it goes on from; or an empty one; or the one that was of use least recently."""
        whole = [held for held in self._prefixes if held.shared(sequence) == len(held.tokens)]
        if whole:
            return max(whole, key=lambda held: len(held.tokens)).slot
        taken = {each.slot for each in (*self._running, *self._prefixes)}
        empty = next((slot for slot in range(self._max_sequences) if slot not in taken), None)
        if empty is not None and (empty < self._allocated or len(taken) < _KEPT or not self._prefixes):
            return empty
        return next(iter(self._prefixes)).slot

    def _sources(self) -> dict[Sequence, tuple[int, int]]:
        """For prompts of which nothing was computed: the slot that holds most of it beyond their own, and how much."""
        if not self._unread:
            return {}
        every = [*self._prefixes, *(_held(each) for each in self._running if each.cached)]
        found = {}
        for sequence in self._unread:
            slot, count = max(((held.slot, held.shared(sequence)) for held in every), key=_second, default=_NOTHING)
            if count > sequence.cached:
                found[sequence] = (slot, count)
        return found

    def _waits(self, sequence: Sequence, readers: Iterable[Sequence], sources: dict[Sequence, tuple[int, int]]) -> bool:
        if sequence not in self._unread:
            return False
        enough = max(sequence.cached, sources.get(sequence, _NOTHING)[1]) + _WORTH_WAITING
        return any(Held(0, each.adapter, each.tokens).shared(sequence) >= enough for each in readers)

    def _begin(self, sequence: Sequence, source: tuple[int, int]) -> None:
        self._unread.discard(sequence)
        slot, count = source
        if sequence.slot is not None and count > sequence.cached:
            self._copies.append((slot, sequence.slot, count))
            self._prefixes.touch(slot)
            self._reuse(sequence, count)

    def _reuse(self, sequence: Sequence, count: int) -> None:
        self.reused_tokens += count - sequence.cached
        sequence.cached = count
        if sequence.generated == 0:
            sequence.reused = count


_NOTHING = (-1, 0)


def _second(pair: tuple[int, int]) -> int:
    return pair[1]


def _held(sequence: Sequence) -> Held:
    return Held(-1 if sequence.slot is None else sequence.slot, sequence.adapter, sequence.tokens[: sequence.cached])


def _shares(missing: dict[Sequence, int], room: int) -> Rows[tuple[Sequence, int]]:
    """Half the room to who came first, so that all get on; the rest to who needs least, so that none waits for long."""
    shares = dict.fromkeys(missing, 0)
    shortest = sorted(missing, key=lambda sequence: missing[sequence])
    for order, most in ((list(missing), room // 2), (shortest, room - room // 2), (list(missing), room)):
        for sequence in order:
            more = min(missing[sequence] - shares[sequence], most, room)
            shares[sequence] += more
            most, room = most - more, room - more
    return [(sequence, count) for sequence, count in shares.items() if count > 0]
