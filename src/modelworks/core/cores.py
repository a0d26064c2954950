"""One core budget: how many threads engines and jobs compute with, so that together they are no more than the cores.

OpenMP threads that outnumber free cores wait for each other at every step: it makes both sides many times slower.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The physical cores this process may use; less where a container's quota says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    words = quota.read_text().split() if quota.is_file() else []
    limit = int(words[0]) // int(words[1]) if len(words) == 2 and words[0].isdigit() else allowed
    return max(1, min(allowed, physical, limit))


@dataclass
class CoreBudget:
    """Serving has half of the cores while jobs compute, and all of them otherwise; jobs the same the other way round.

    Engines that answer share what serving has; one that is idle needs none. Jobs share by those that run, and change
    only when the first engine comes or the last one goes, so that a training's sums keep their order.
    """

    cores: int
    # Called, from any thread, when what engines may have has changed.
    changed: Callable[[], None] = lambda: None
    _jobs: int = 0
    _engines: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_jobs(self, count: int) -> None:
        """So many jobs compute on the CPU now."""
        with self._lock:
            before, self._jobs = self._jobs, count
        if before != count:
            self.changed()

    def note_engines(self, count: int) -> None:
        """So many engines stand on the CPU now, busy or not."""
        with self._lock:
            self._engines = count

    def job_threads(self) -> int:
        """What each job may have."""
        with self._lock:
            ours = self.cores - self.cores // 2 if self._engines else self.cores
            return max(1, ours // max(1, self._jobs))

    def engine_threads(self, busy: int) -> int:
        """What each of `busy` engines may have."""
        with self._lock:
            ours = self.cores // 2 if self._jobs else self.cores
            return max(1, ours // max(1, busy))
