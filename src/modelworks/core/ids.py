"""Identifiers: UUIDv7 for jobs and artifacts (they sort by time), and the grammar of names."""

from __future__ import annotations

import os
import re
import time
import uuid

from modelworks.core.errors import Invalid

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
# ft:BASE:WHOSE:SUFFIX:ID, as the OpenAI API names what was fine-tuned; the suffix may be empty.
_TUNED = rf"ft:{NAME_PATTERN}(/{NAME_PATTERN})?:{NAME_PATTERN}:({NAME_PATTERN})?:{NAME_PATTERN}"
_NAME = re.compile(rf"{NAME_PATTERN}(/{NAME_PATTERN})?|{_TUNED}")
_PART = re.compile("[/:]")
_DEVICE_NAMES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562): 48 bits of milliseconds, then random."""
    milliseconds = time.time_ns() // 1_000_000
    raw = (milliseconds & ((1 << 48) - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    raw = raw & ~(0xF << 76) | (0x7 << 76)
    raw = raw & ~(0x3 << 62) | (0x2 << 62)
    return str(uuid.UUID(int=raw))


def check_name(name: str) -> str:
    """Return `name` if it is NAME, ORG/NAME or ft:BASE:WHOSE:SUFFIX:ID in our grammar.

    Raises:
        Invalid: naming what is wrong and what is allowed.
    """
    parts = _PART.split(name)
    if not _NAME.fullmatch(name) or ".." in name or any(p.split(".")[0].lower() in _DEVICE_NAMES for p in parts):
        raise Invalid(
            f"{name!r} is not a name; use letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "at most 128 characters, with at most one '/' (ORG/NAME)"
        )
    return name
