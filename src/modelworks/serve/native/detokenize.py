"""Tokens to text as they come: no half characters, and nothing that may yet turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\ufffd"
# The longest character is four bytes; a token may hold a single one. What stays undecodable after more is broken.
_PATIENCE = 8


class Detokenizer:
    """`decode` turns token ids to text. `stopped` is true once a stop string came; it is never part of the text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        # Tokens before `_read` are told; those from `_context` on are decoded again, for a token's text (its leading
        # blank, say) depends on the one before it.
        self._tokens: list[int] = []
        self._context = 0
        self._read = 0
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Return the text that is certain after this token, perhaps none."""
        self._tokens.append(token)
        return self._tell(self._new_text(whole=False), last=False)

    def close(self) -> str:
        """Return what was held back, when no token follows."""
        return self._tell(self._new_text(whole=True), last=True)

    def _new_text(self, whole: bool) -> str:
        if self.stopped or self._read == len(self._tokens):
            return ""
        before = self._decode(self._tokens[self._context : self._read])
        text = self._decode(self._tokens[self._context :])
        if text.endswith(_HALF) and not whole and len(self._tokens) - self._read < _PATIENCE:
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def _tell(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [position for position in (text.find(stop) for stop in self._stops) if position >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else tail_that_may_begin(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def tail_that_may_begin(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` with which one of `stops` begins."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0
