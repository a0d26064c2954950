"""The Model Server's own start commands, as processes: `python -m model_api`, `python -m model_api.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from entries import entries_folder
from modelworks.server.sockets import listen

LAUNCHERS = Path(__file__).parents[2] / "launchers"


def free_port() -> int:
    taken = listen("127.0.0.1", 0)
    port = int(taken[0].getsockname()[1])
    for each in taken:
        each.close()
    return port


@contextmanager
def started(own: Path, *arguments: str, module: str = "model_api") -> Iterator[subprocess.Popen[str]]:
    """The command, started in the folder of the user's entries."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    environment = kept | {"PYTHONPATH": str(LAUNCHERS), "MODELWORKS_HOME": str(own.parent / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=own, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said_until(process: subprocess.Popen[str], words: str, times: int) -> str:
    """What it says on stderr up to the line that has `words` for the last time."""
    assert process.stderr is not None
    said = ""
    while said.count(words) < times:
        line = process.stderr.readline()
        assert line, f"it ended with {process.wait()}: {said}"
        said += line
    return said


@pytest.mark.parametrize("module", ["model_api", "model_api.py"])
def test_the_documents_command_serves_the_entries_of_its_folder(tmp_path: Path, module: str) -> None:
    port = free_port()
    devices = ("--device", "cpu", "cpu", "cuda:99", "--port", str(port), "--batch-size", "4")
    with started(entries_folder(tmp_path / "own"), "--model", "scripted", *devices, module=module) as process:
        said = said_until(process, "scripted on cpu: ready", 2)

        url = f"http://127.0.0.1:{port}/api/v1"
        info = requests.post(f"{url}/", json={}, timeout=60).json()["info"]["scripted"]
        assert (info["state"], info["device"]) == ("ready", ["cpu", "cpu"])
        call = {"messages": [{"role": "user", "content": "hi"}]}
        answer = requests.post(f"{url}/scripted/call", json=call, timeout=60).json()
        assert answer == {"status": 0, "result": "http://hello: user=hi"}
        assert "scripted on cuda:99: device 'cuda:99': this machine has" in said
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_model_that_can_be_had_on_no_device_ends_the_server(tmp_path: Path) -> None:
    own = entries_folder(tmp_path / "own")
    with started(own, "--model", "sick", "--device", "cpu", "cuda:99", "--port", str(free_port())) as process:
        _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "sick on cpu: sick: Scripted.activate('cpu') raised RuntimeError: no weights there" in said


def test_a_config_that_cannot_be_read_is_told_before_anything_starts(tmp_path: Path) -> None:
    own = entries_folder(tmp_path / "own")
    (own / "config.json").write_text('{"a": }')
    with started(own, "--port", str(free_port())) as process:
        _, said = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "config.json: Expecting value: line 1" in said
    with started(own, "--device", "cpu") as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "--device needs --model NAME" in said) == (2, True)
