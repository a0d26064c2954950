"""Python's garbage collector, kept from looking through what will stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Import and plan a fifth faster: nothing of what that makes is garbage, so none is looked for."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
