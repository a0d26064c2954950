"""Runners as detached processes on this machine: own session and process group, so they outlive the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from modelworks.jobs.folder import JobFolder

# So long at most between a free lock and the news of how the process ended.
_ENDING_SECONDS = 5.0


@dataclass
class LocalExecutor:
    """Starts runners, tells whether they live, and stops them. `command` is that of a runner, which gets the folder."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    # Our own children, to be reaped; adopted runners are not among them.
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    exit_codes: dict[str, int] = field(default_factory=dict)

    def start(self, folder: JobFolder) -> None:
        """Start the runner for the order in the folder. Returns at once; the runner holds the folder's lock."""
        lock = folder.take_lock()
        if lock is None:
            raise RuntimeError(f"{folder.path} is locked: a run of this job goes on")
        try:
            # Inheritance hands the lock over without a gap: it is free only when the run is gone.
            with folder.stdout.open("ab") as log:
                self.children[str(folder.path)] = subprocess.Popen(
                    [*self.command, str(folder.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=folder.path,
                    env=dict(self.environment) | _threads(folder),
                    start_new_session=True,
                    pass_fds=(lock,),
                    umask=0o077,
                )
        finally:
            os.close(lock)

    def is_alive(self, folder: JobFolder) -> bool:
        """Whether the run in this folder goes on, whoever started it."""
        locked = folder.is_locked()
        child = self.children.get(str(folder.path))
        if child is not None:
            # The kernel frees the lock of a process that ends a moment before it tells how that ended.
            with suppress(subprocess.TimeoutExpired):
                self.exit_codes[str(folder.path)] = child.wait(0 if locked else _ENDING_SECONDS)
                del self.children[str(folder.path)]
        return locked

    def exit_code(self, folder: JobFolder) -> int | None:
        """How the last run in this folder ended, negative for a signal; None where another server started it."""
        return self.exit_codes.pop(str(folder.path), None)

    def ask_to_stop(self, folder: JobFolder, *, pause: bool) -> None:
        """Let the runner end by itself, in order; for a pause it may first write down what it has reached."""
        leader = _leader(folder)
        if leader is not None:
            _signal(leader, signal.SIGUSR1 if pause else signal.SIGTERM)

    def kill(self, folder: JobFolder) -> None:
        """End every process of the run, now."""
        for pid in _members(folder):
            _signal(pid, signal.SIGKILL)
        child = self.children.pop(str(folder.path), None)
        if child is not None:
            child.kill()
            child.wait()


def _threads(folder: JobFolder) -> dict[str, str]:
    """The share of the cores that the run begins with."""
    return {"OMP_NUM_THREADS": folder.threads.read_text()} if folder.threads.exists() else {}


def _leader(folder: JobFolder) -> int | None:
    """The runner's pid, if that pid is still the runner and not a later process with its number."""
    known = _described(folder)
    if known is None:
        return None
    try:
        same = abs(psutil.Process(int(known["pid"])).create_time() - known["started"]) < 1
    except psutil.NoSuchProcess:
        return None
    return int(known["pid"]) if same else None


def _members(folder: JobFolder) -> list[int]:
    """Every process of the runner's session, the runner itself or what it left behind."""
    known = _described(folder)
    if known is None or abs(known["boot"] - psutil.boot_time()) > 5:
        return []
    session = int(known["pid"])
    return [pid for pid in psutil.pids() if _session_of(pid) == session]


def _described(folder: JobFolder) -> dict[str, float] | None:
    try:
        return {key: float(value) for key, value in json.loads(folder.process.read_bytes()).items()}
    except (FileNotFoundError, ValueError):
        return None


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
