from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from contract.surfaces.blocks import blocks, document

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}

    assert written == generator().pages(), "run `make docs` and commit docs/reference"


@pytest.mark.parametrize(
    ("name", "folder"),
    [("S0", "merging_api"), ("S1", "modelforge"), ("S2", "finetuning_api"), ("S3", "model_server"), ("S4", "slm")],
)
def test_every_field_of_the_documents_samples_is_on_the_page_of_surfaces(name: str, folder: str) -> None:
    page = (DOCS / "reference" / "surfaces.md").read_text(encoding="utf-8")
    chapters = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    # A field of its own, or a key that its field's description names.
    told = set(re.findall(r"\w+", chapters[folder] + chapters["shared"]))
    # S3 shows its bodies in a table; its only block is a file.
    samples = [block.text for block in blocks().values() if block.document == name and block.text.lstrip()[0] in "{d"]
    text = document("S3") if name == "S3" else "\n".join(samples)

    # The keys of S3's config.json are a file's, not a body's.
    fields = set(re.findall(r'"(\w+)"(?: \(Optional\))?:', text.partition("### Add Custom model")[0]))

    assert len(fields) >= 5
    assert sorted(fields - told) == []


def test_every_field_on_the_page_of_surfaces_is_supported_translated_or_refused() -> None:
    page = (DOCS / "reference" / "surfaces.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| field \|.*?(?:\n\n|\Z)", page, re.MULTILINE | re.DOTALL)
    fields = [line for table in tables for line in table.splitlines()[2:] if line]

    assert [line for line in fields if not re.match(r".*\| (supported|translated|refused)\b[^|]*\|$", line)] == []
