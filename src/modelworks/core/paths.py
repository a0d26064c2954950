"""The one way to turn a user's text into a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelworks.core.errors import Denied, Invalid


def inside(path: Path, roots: Sequence[Path]) -> Path:
    """Return `path` resolved if it lies under one of `roots`.

    Raises:
        Denied: naming the flag that opens a root.
    """
    if "\0" in str(path):
        raise Invalid("a path cannot hold a NUL character")
    try:
        resolved = path.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise Invalid(f"{str(path)[:80]!r} is not a path: {error}") from None
    if not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise Denied(f"{path} is outside the allowed folders; open it with --allow-path DIR")
    return resolved
