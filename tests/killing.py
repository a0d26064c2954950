"""`kill -9` of a job's runner at moments drawn from a seed: while it loads, between steps, in a step, in a save."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")


def kill_at_random_moments(folder: Path, times: int, seed: int, ended: Callable[[], bool]) -> list[str]:
    """Kill the job in `folder` so many times, once a run, unless it ends before; return what was hit."""
    rng, known = random.Random(seed), 0
    hit: list[str] = []
    while len(hit) < times and not ended():
        pid = _wait(partial(_runner, folder, known), ended)
        if pid is None:
            break
        kind, happens, delay = _draw(folder, rng)
        _wait(partial(_either, happens, pid), ended)
        time.sleep(delay)
        if not psutil.pid_exists(pid) or ended():
            break
        hit.append(f"{kind} at {_step(folder)}")
        os.kill(pid, signal.SIGKILL)
        known = pid
    return hit


def _draw(folder: Path, rng: random.Random) -> tuple[str, Callable[[], bool], float]:
    """What to wait for, and how long after it to kill."""
    kind = rng.choice(("step", "step", "step", "save", "start"))
    target, seen = _step(folder) + rng.randint(1, 8), set(folder.glob("checkpoints/checkpoint-*"))
    if kind == "step":
        return kind, lambda: _step(folder) >= target, rng.uniform(0, 0.1)
    if kind == "save":
        return kind, lambda: bool(set(folder.glob("checkpoints/checkpoint-*")) - seen), rng.uniform(0, 0.02)
    return kind, lambda: True, rng.uniform(0, 6)


def _either(happens: Callable[[], bool], pid: int) -> bool:
    return happens() or not psutil.pid_exists(pid)


def _runner(folder: Path, known: int) -> int | None:
    try:
        pid = int(json.loads((folder / "process.json").read_text())["pid"])
    except (FileNotFoundError, ValueError):
        return None
    return pid if pid != known and psutil.pid_exists(pid) else None


def _step(folder: Path) -> int:
    try:
        lines = (folder / "events.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [json.loads(line)["body"].get("step", 0) for line in lines if '"metric"' in line and line.endswith("}")]
    return steps[-1] if steps else 0


def _wait(look: Callable[[], T | None], ended: Callable[[], bool]) -> T | None:
    while not ended():
        if found := look():
            return found
        time.sleep(0.01)
    return None
