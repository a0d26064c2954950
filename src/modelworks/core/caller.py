"""Who asks, and what becomes known of the request on its way: for limits and the access log, never its words."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Caller:
    """`key` is the name of the key that opened, `timeout_seconds` how long an answer is waited for."""

    key: str | None = None
    timeout_seconds: float | None = None
    model: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    first_token_ms: float | None = None


_CALLER: ContextVar[Caller] = ContextVar("caller")


def current() -> Caller:
    """The caller of the request that is answered here, made where nobody has begun one."""
    found = _CALLER.get(None)
    return begin() if found is None else found


def begin() -> Caller:
    """Note that all that follows in this context is for a new caller."""
    caller = Caller()
    _CALLER.set(caller)
    return caller
