"""Time: aware UTC everywhere, and one place that tests can replace."""

from __future__ import annotations

import re
from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)


def to_iso(moment: datetime) -> str:
    """RFC 3339 with milliseconds and Z, e.g. 2026-11-21T03:35:22.120Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(text: object) -> object:
    """The seconds of a text like `90`, `90s`, `10m` or `-1h`; what is no text as it is, for whoever checks it."""
    if not isinstance(text, str):
        return text
    if (match := re.fullmatch(r"(-?\d+(?:\.\d+)?)(s|m|h|)", text)) is None:
        raise ValueError("this is no length of time: write 90s, 10m or 1h, or a number of seconds")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 1}[match[2]]


def from_iso(text: str) -> datetime:
    return datetime.fromisoformat(text)
