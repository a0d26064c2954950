"""The SLM API's own start command, and its client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from doors import listening
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from tiny import tiny_llama

LAUNCHERS = Path(__file__).parents[2] / "launchers"


def run(launcher: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    command = [sys.executable, str(LAUNCHERS / launcher), *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_client_walks_through_a_server_that_has_a_model_and_tells_of_one_that_has_none(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", max_position_embeddings=2048)
    app = open_app(Settings(home=tmp_path / "home", hub_offline=True, allow_paths=(tmp_path,), slm_base="tiny"))
    with listening(app) as url:
        without = run("test_slm_api.py", "--url", url)
        app.services.catalog.add_model(base, "tiny")
        with_one = run("test_slm_api.py", "--url", url, "--prompt", "Tell me about artificial intelligence")
    app.close()
    gone = run("test_slm_api.py", "--url", url)

    assert (without.returncode, without.stdout.splitlines()[-1]) == (1, "2 of 5 ok")
    assert "LoRA model not found" in without.stdout
    assert (with_one.returncode, with_one.stdout.splitlines()[-1]) == (0, "5 of 5 ok"), with_one.stdout
    assert gone.returncode == 1
    assert "does not answer" in gone.stderr


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0", "--port", "0", "--debug")])
def test_an_address_that_others_reach_needs_a_key_or_a_word(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = run("start_slm_api.py", *arguments, MODELWORKS_HOME=str(tmp_path / "home"))

    assert refused.returncode == 2
    assert "MODELWORKS_API_KEY" in refused.stderr
    assert "--insecure-no-auth" in refused.stderr


def test_the_document_s_flags_start_the_server(tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    command = [sys.executable, str(LAUNCHERS / "start_slm_api.py"), "--port", "0", "--debug", "--base", "mine"]
    environment = clean | {"MODELWORKS_HOME": str(tmp_path / "home"), "MODELWORKS_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(5)]
        process.terminate()
        process.stderr.read()

    assert "listens on http://127.0.0.1:" in said[0]
    assert "the SLM API" in said[4]
    assert process.returncode == 0
