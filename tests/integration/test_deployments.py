"""Engines loaded, listed and ended from the command line, and a model taken away, through a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from doors import serving
from modelworks.app.wiring import open_app
from modelworks.client import Client
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict
from tiny import tiny_llama


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MODELWORKS_HOME": str(home), "MODELWORKS_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", "from modelworks.cli.main import main; main()", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)


def workspace_with_a_model(folder: Path) -> Path:
    home, source = folder / "home", tiny_llama(folder / "tiny")
    app = open_app(Settings.model_validate({"home": home, "allow_paths": (source,), "hub_offline": True}))
    app.services.catalog.add_model(source, "org/tiny")
    app.close()
    return home


def test_engines_come_and_go_by_the_command_line(tmp_path: Path) -> None:
    home = workspace_with_a_model(tmp_path)
    without = command(home, "models", "ps")
    assert without.returncode == 3
    assert "start one with modelworks serve" in without.stderr

    with serving(home) as server:
        server.wait_until_ready()
        loaded = command(home, "models", "load", "org/tiny", "--replicas", "2", "--device", "cpu")
        assert (loaded.returncode, loaded.stdout) == (0, "org/tiny  ready on cpu, cpu\n"), loaded.stderr
        [listed] = [json.loads(line) for line in command(home, "models", "ps", "--json").stdout.splitlines()]
        assert [replica["state"] for replica in listed["replicas"]] == ["ready", "ready"]

        assert command(home, "models", "unload", "org/tiny", "--one").returncode == 0
        assert command(home, "models", "ps").stdout.count("org/tiny") == 1
        refused = command(home, "models", "load", "org/tiny", "--replicas", "2", "--device", "cuda:7")
        assert refused.returncode == 1
        assert "cuda:7" in refused.stderr
        assert command(home, "models", "unload", "org/tiny").returncode == 0
        assert "nothing is loaded" in command(home, "models", "ps").stderr


def test_a_model_is_taken_away_as_one_file(tmp_path: Path) -> None:
    home = workspace_with_a_model(tmp_path)
    with serving(home) as server, Client(server.wait_until_ready()) as client:
        client.download("org/tiny", tmp_path / "tiny.tar")
        files = client.model("org/tiny").files

    with tarfile.open(tmp_path / "tiny.tar") as archive:
        assert {member.name: member.size for member in archive} == {
            f"tiny/{file.path}": file.size_bytes for file in files
        }
    assert not list(tmp_path.glob(".*.partial"))


def test_a_model_is_taken_away_as_gguf_by_the_command_line_and_over_http(tmp_path: Path) -> None:
    home = workspace_with_a_model(tmp_path)
    written = command(home, "export", "org/tiny", "--to", "gguf", "--out", str(tmp_path / "here.gguf"))
    assert written.returncode == 0, written.stderr
    again = command(home, "export", "org/tiny", "--out", str(tmp_path / "here.gguf"))
    assert (again.returncode, "say --overwrite" in again.stderr) == (5, True)

    with serving(home) as server, Client(server.wait_until_ready()) as client:
        job = client.wait(client.submit("export", {"model": "org/tiny", "name": "org/kept"}).id)
        assert job.result is not None, job.error
        assert job.result["bytes"] == (tmp_path / "here.gguf").stat().st_size
        client.download_export("org/kept", tmp_path / "sent.gguf")
    taken = command(home, "export", "org/kept", "--out", str(tmp_path / "taken.gguf"))
    assert taken.returncode == 0, taken.stderr
    wanted = (tmp_path / "here.gguf").read_bytes()
    assert (tmp_path / "sent.gguf").read_bytes() == wanted == (tmp_path / "taken.gguf").read_bytes()


def test_what_a_training_made_answers_at_once(tmp_path: Path) -> None:
    home = workspace_with_a_model(tmp_path)
    lines = [{"instruction": f"say {word}", "output": word} for word in ("yes", "no", "so", "on")]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with serving(home) as server, Client(server.wait_until_ready()) as client:
        client.upload(tmp_path / "rows.jsonl", "rows", validation_share=0)
        spec = {"model": "org/tiny", "dataset": "rows", "name": "me/first", "max_steps": 2, "merge": True}
        spec |= {"max_length": 64, "device": "cpu", "export_gguf": "f16"}
        assert client.estimate_training(spec)["steps"] == 2
        assert client.jobs() == []
        client.load("org/tiny", device="cpu")
        job = client.wait(client.submit("train", spec).id)
        assert job.state == "succeeded", job.error

        asked_at = time.monotonic()
        answer = "".join(client.chat("me/first", [{"role": "user", "content": "say yes"}], max_tokens=1, temperature=0))
        took = time.monotonic() - asked_at

        assert isinstance(answer, str)
        # Loaded into the engine that runs; a quarter of a second where nothing else runs.
        assert took < 3
        assert {model.name for model in client.models()} == {"org/tiny", "me/first", "me/first-merged"}
        client.download_export("me/first-gguf", tmp_path / "first.gguf")
        assert (tmp_path / "first.gguf").read_bytes()[:4] == b"GGUF"
        client.alias("me/first", "me/second-merged")
        with pytest.raises(Conflict, match="'me/second-merged' exists already"):
            client.submit("train", spec | {"name": "me/second"})
