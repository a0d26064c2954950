"""Who waits for a job's events hears of them at once, without asking the database again and again."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

LOOK_SECONDS = 0.05


@dataclass
class Feed:
    """A count of changes by job, written by the worker's thread and watched by event loops."""

    changes: dict[str, int] = field(default_factory=dict)

    def tell(self, job_id: str) -> None:
        self.changes[job_id] = self.changes.get(job_id, 0) + 1

    def seen(self, job_id: str) -> int:
        return self.changes.get(job_id, 0)

    async def wait(self, job_id: str, seen: int, seconds: float) -> None:
        """Return when the job changed since `seen`, or after `seconds`: another process may be its worker."""
        deadline = time.monotonic() + seconds
        while self.seen(job_id) == seen and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
