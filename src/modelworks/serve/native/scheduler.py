"""Who computes what in the next step: pure bookkeeping, no tensors.

Every step decodes one token of each running answer and reads a piece of the new prompts beside it, so a new request
joins a running batch at once, and a finished one leaves its slot in the same step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelworks.serve.native.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """Compute `count` tokens of `sequence` from its first one that is not in the cache."""

    sequence: Sequence
    count: int

    @property
    def start(self) -> int:
        return self.sequence.cached

    @property
    def gives_token(self) -> bool:
        """Whether the last token known so far is among them, so that the next one can be sampled."""
        return self.start + self.count == len(self.sequence.tokens)


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
        self.preempted = 0

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

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is; its slot is free for the next step."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        sequence.slot = None

    def plan(self) -> list[Piece]:
        """Choose the pieces of the next step: one token of every running answer first, then prompts."""
        self._make_room()
        self._admit()
        room = self._tokens_per_step
        pieces = [Piece(sequence, 1) for sequence in self._running if sequence.cached + 1 == len(sequence.tokens)]
        room -= len(pieces)
        for sequence in self._running:
            missing = len(sequence.tokens) - sequence.cached
            if missing > 1 and room > 0:
                pieces.append(Piece(sequence, min(missing, room)))
                room -= pieces[-1].count
        return pieces

    def shape(self) -> tuple[int, int]:
        """The slots and the length that the cache needs for what runs now."""
        slots = max((sequence.slot + 1 for sequence in self._running if sequence.slot is not None), default=0)
        return slots, max((len(sequence.tokens) for sequence in self._running), default=0)

    def _make_room(self) -> None:
        """Send the highest slot, mostly the youngest, back to the head of the queue; it is read again later."""
        while self._running and not self._fits(*self.shape()):
            last = max(self._running, key=lambda sequence: sequence.slot or 0)
            if last.slot == 0:  # alone: one sequence always fits
                return
            self._running.remove(last)
            last.slot, last.cached = None, 0
            self._waiting.appendleft(last)
            self.preempted += 1

    def _admit(self) -> None:
        free = sorted(set(range(self._max_sequences)) - {sequence.slot for sequence in self._running})
        _, longest = self.shape()
        while self._waiting and free:
            sequence = self._waiting[0]
            slots = max(len(self._running) + 1, free[0] + 1)
            longest = max(longest, len(sequence.tokens))
            if self._running and not self._fits(slots, longest):
                return
            sequence.slot = free.pop(0)
            self._running.append(self._waiting.popleft())
