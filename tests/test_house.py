"""The house rules that a machine can check: sizes, names, one place for each thing."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "modelworks"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_OF_A_FILE = 600
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_SURFACE = 350
MOST_LINES_OF_THE_PRODUCT = 27_860
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager", "managers"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield f"{relative(path)}:{node.name}", node.end_lineno - node.lineno + 1


def lines_of_code(path: Path) -> int:
    """Lines that hold a statement: blank lines, comments and docstrings are not charged."""
    text = path.read_text()
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate((line.strip() for line in text.splitlines()), start=1)
    return sum(1 for number, line in lines if line and not line.startswith("#") and number not in told)


def imported(path: Path) -> set[str]:
    """Modules that a file imports when it is imported itself: those inside functions or for types only do not count."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_no_file_is_too_long() -> None:
    long = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}

    assert {path: lines for path, lines in long.items() if lines > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_too_long() -> None:
    # A migration is a list of tables, not logic.
    looked_at = [path for path in SOURCES if "migrations" not in path.parts]

    found = {name: lines for path in looked_at for name, lines in functions(path) if lines > MOST_LINES_OF_A_FUNCTION}

    assert found == {}


def test_the_product_stays_small() -> None:
    assert sum(lines_of_code(path) for path in SOURCES) < MOST_LINES_OF_THE_PRODUCT


@pytest.mark.parametrize("surface", sorted(path.parent.name for path in PACKAGE.glob("surfaces/*/__init__.py")))
def test_a_surface_only_translates(surface: str) -> None:
    lines = sum(len(path.read_text().splitlines()) for path in PACKAGE.glob(f"surfaces/{surface}/*.py"))

    assert lines < MOST_LINES_OF_A_SURFACE


def test_every_file_is_named_after_its_idea() -> None:
    assert [relative(path) for path in SOURCES if path.stem.lower() in EMPTY_NAMES] == []


def test_every_module_says_in_its_first_line_what_lives_there() -> None:
    without = [relative(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]

    assert without == []


def test_every_exception_to_a_rule_gives_its_reason() -> None:
    bare = re.compile(r"# (type: ignore|noqa)(\[[a-z-]+(, [a-z-]+)*\]|: [A-Z0-9, ]+)?\s*$")
    found = [
        f"{relative(path)}:{number}"
        for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if bare.search(line)
    ]

    assert found == []


def test_torch_and_its_kin_are_imported_only_where_they_run() -> None:
    heavy = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf", "optuna", "pyarrow"}
    allowed = PACKAGE / "serve" / "native"

    found = {relative(path): sorted(imported(path) & heavy) for path in SOURCES if not path.is_relative_to(allowed)}

    assert {path: names for path, names in found.items() if names} == {}


def test_only_the_settings_look_at_the_environment() -> None:
    looking = [relative(path) for path in SOURCES if re.search(r"os\.environ|os\.getenv", path.read_text())]

    assert looking == ["src/modelworks/core/config.py"]


def test_only_the_store_speaks_sql() -> None:
    speaking = [relative(path) for path in SOURCES if "sqlalchemy" in imported(path)]

    assert [path for path in speaking if not path.startswith("src/modelworks/store/")] == []


@pytest.mark.parametrize("word", ["make demo", "make test"])
def test_the_readme_names_the_two_commands(word: str) -> None:
    assert word in (ROOT / "README.md").read_text()


def test_every_word_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None

    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert [word for word in phony.group(1).split() if f"make {word} " not in told] == []


def test_the_walk_through_the_code_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text))

    missing = [path for path in sorted(named) if not (PACKAGE / path).exists() and not (ROOT / path).exists()]

    assert len(named) > 20
    assert missing == []
