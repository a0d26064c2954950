"""What lies beside the weights of a model and belongs to it: tokenizer, chat template, settings, licence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from modelworks.weights.reader import INDEX

_KINDS = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})
# config.json goes with the weights; the others tell how the model itself was made.
_NOT_THESE = ("config.json", INDEX, "merge_report.json", "search.json")


def companions(folder: Path) -> Iterator[Path]:
    """Every such file of a model's folder; neither its weights and config nor what was told of its making."""
    for path in sorted(folder.iterdir()):
        wanted = path.suffix in _KINDS or path.name.upper().startswith(("LICENSE", "NOTICE"))
        if path.is_file() and wanted and path.name not in _NOT_THESE:
            yield path


def copy_companions(source: Path, folder: Path) -> None:
    for path in companions(source):
        shutil.copyfile(path, folder / path.name)
