"""The demo as a user runs it, twice: whole, then from what is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def run_demo(home: Path) -> tuple[str, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo" / "demo.py")],
        env=os.environ | {"MODELWORKS_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, time.monotonic() - began


def left_running(home: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MODELWORKS_HOME") == str(home) or str(home) in " ".join(process.cmdline()):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_the_demo_runs_whole_and_then_from_what_is_there(tmp_path: Path) -> None:
    home = tmp_path / "home"

    first, _ = run_demo(home)
    second, seconds = run_demo(home)

    for printed in (first, second):
        assert "demo/both" in printed
        assert "Done in" in printed
    assert "demo/shell is here already" in second
    # The promise is a minute on a quiet machine.
    assert seconds < 120
    assert left_running(home) == []
