"""A folder of rows: its files, and the side that each is named after, as the `datasets` library lays them out."""

from __future__ import annotations

import re
from pathlib import Path

from modelworks.core.errors import Invalid
from modelworks.data.record import Split

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# test rows are held out as well: they must not be learned
SIDES: dict[str, Split] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "test": "validation",
}  # fmt: skip
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"}
_WORD = re.compile(r"[a-z]+")


def files_in(folder: Path, notes: list[str]) -> list[tuple[Path, Split | None]]:
    """The files with rows, in order; the side is None where the names tell only one, or none.

    Raises:
        Invalid: there is no such file.
    """
    inner = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    named = [path for path in inner if path.name not in _ABOUT and not any(part.startswith(".") for part in path.parts)]
    kept = [path for path in named if suffix_of(path) in SUFFIXES]
    kept = kept or [path for path in named if suffix_of(path) == ".txt"]
    if not kept:
        raise Invalid(f"{folder} holds no file of rows ({', '.join(SUFFIXES)} or .txt)")
    if left := [str(path) for path in named if path not in kept]:
        notes.append(f"not read: {', '.join(left[:5])}" + (f" and {len(left) - 5} more" if left[5:] else ""))
    sides = [_side(path) for path in kept]
    # One side alone says nothing about which rows to hold out.
    if not {"train", "validation"} <= set(sides):
        sides = [None] * len(kept)
    return [(folder / path, side) for path, side in zip(kept, sides, strict=True)]


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind: of rows.jsonl.gz it is .jsonl."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _side(path: Path) -> Split | None:
    words = _WORD.findall(str(path.with_suffix("")).lower())
    return next((SIDES[word] for word in reversed(words) if word in SIDES), None)
