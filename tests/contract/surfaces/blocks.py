"""The blocks of the five documents: fenced ones by their fences, those of the page that lost its fences by anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DOCUMENTS = Path(__file__).parent / "documents"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# S1: what a block begins and ends with, as whole lines or their beginnings.
ANCHORS = (
    ("json", re.compile(r"^\{\n.*?^\}\n", re.MULTILINE | re.DOTALL)),
    ("javascript", re.compile(r"^const ws = .*?^\};\n", re.MULTILINE | re.DOTALL)),
    ("python", re.compile(r"^import requests\n.*?^print\(status\.json\(\)\)\n", re.MULTILINE | re.DOTALL)),
)


@dataclass(frozen=True)
class Block:
    """One block; `id` is the document and its place there, e.g. S0-07."""

    id: str
    language: str
    text: str

    @property
    def document(self) -> str:
        return self.id[:2]


@cache
def blocks() -> dict[str, Block]:
    """Every block of every document, by id, in their order."""
    return {block.id: block for path in sorted(DOCUMENTS.glob("S*.md")) for block in _blocks_of(path)}


def document(name: str) -> str:
    (path,) = DOCUMENTS.glob(f"{name}-*.md")
    return path.read_text(encoding="utf-8")


def _blocks_of(path: Path) -> list[Block]:
    text, name = path.read_text(encoding="utf-8"), path.name[:2]
    fenced = [(found.start(), found.group(1), found.group(2)) for found in FENCE.finditer(text)]
    anchored = [(found.start(), kind, found.group()) for kind, anchor in ANCHORS for found in anchor.finditer(text)]
    return [
        Block(f"{name}-{number:02}", language, body)
        for number, (_, language, body) in enumerate(sorted(fenced or anchored), start=1)
    ]
