"""Regular expressions that users write: RE2, which takes linear time whatever the pattern."""

from __future__ import annotations

from typing import Any


def compile_pattern(pattern: str) -> Any:
    """Raises ValueError, saying what is wrong, for what is no pattern of RE2."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(f"{pattern!r}: {error}") from None
