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
    """The seconds of a length like `90`, `90s`, `10m` or `-1h`; anything else as it is, for whoever checks it."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)(s|m|h|)", text) if isinstance(text, str) else None
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 1}[match[2]] if match else text


def from_iso(text: str) -> datetime:
    return datetime.fromisoformat(text)
