"""Guessing what an answer says next, so that one step gives several of its tokens where no other answer goes on.

Reading the weights for one token costs nearly as much as for a few. Where the last two tokens stood together before, in
the prompt or in the answer, what followed there is computed along (prompt lookup decoding, Saxena 2023). A guess counts
only where the model says the same, with the draw that it would have had: the text is the one that it would be without.
"""

from __future__ import annotations

from collections.abc import Sequence

# The most tokens that are guessed at once.
_FURTHEST = 6


class Lookup:
    """What followed each pair of tokens of one sequence the last time, and how far that has been right of late."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._read = 2
        self._reach = 1

    def guess(self, tokens: Sequence[int], room: int) -> Sequence[int]:
        """At most `room` tokens that may follow `tokens`, which only ever grow."""
        for place in range(self._read, len(tokens)):
            self._after[tokens[place - 2], tokens[place - 1]] = place
        self._read = max(self._read, len(tokens))
        at = self._after.get(tuple(tokens[-2:]))
        if at is None:
            return ()
        # Where what followed reaches up to here, it goes on as it began.
        period = len(tokens) - at
        return [tokens[at + number % period] for number in range(min(self._reach, room))]

    def learn(self, guessed: int, right: int) -> None:
        """Guess further from now on where all was right, and less far where it was not."""
        self._reach = min(self._reach + 2, _FURTHEST) if right == guessed else max(1, right)
