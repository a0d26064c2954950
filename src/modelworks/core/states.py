"""The states of jobs and deployments."""

from __future__ import annotations

from enum import StrEnum


# queued -> running -> succeeded | failed | cancelled. What waits or runs may be cancelled or paused, and what is paused
# is queued again or cancelled; a run that is lost puts its job back into the queue.
class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


# wanted -> starting -> ready -> draining -> gone; failed from any; back to wanted where an engine died.
class DeploymentState(StrEnum):
    WANTED = "wanted"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"
