"""Where a program that is not ours is found."""

from __future__ import annotations

import shutil
from pathlib import Path

from modelworks.core.errors import Unsupported


def find_program(told: str | None, name: str, remedy: str) -> str:
    """The program `name`: what the settings tell (its file, or the folder of its virtual environment), or on the PATH.

    Raises:
        Unsupported: it is not there, with the remedy.
    """
    wish = name if told is None else str(Path(told) / "bin" / name) if Path(told).is_dir() else told
    found = shutil.which(wish)
    if found is None:
        raise Unsupported(f"engine {name}: {wish} was not found{' on the PATH' * (told is None)}; {remedy}")
    return found
