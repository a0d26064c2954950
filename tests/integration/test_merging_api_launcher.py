"""The Model Merging API's own start command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2

LAUNCHER = Path(__file__).parents[2] / "launchers" / "run_api.py"


def test_the_start_command_serves_as_the_merging_api(tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MODELWORKS_")}
    command = [sys.executable, str(LAUNCHER), "--port", "0"]
    environment = clean | {"MODELWORKS_HOME": str(tmp_path / "home"), "MODELWORKS_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(5)]
        url = re.search(r"http://127\.0\.0\.1:\d+", said[0])
        assert url is not None, said
        health = httpx2.get(f"{url[0]}/api/health").json()
        process.terminate()
        process.stderr.read()

    assert "the Model Merging API" in said[4]
    assert process.returncode == 0
    assert health.pop("timestamp").endswith("Z")
    assert health == {"status": "healthy", "merging_available": True, "version": "1.0.0"}
