"""The two state machines, Job and Deployment, and the moves they allow."""

from __future__ import annotations

from enum import StrEnum


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

    def may_become(self, other: JobState) -> bool:
        return other in JOB_MOVES[self]


JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    # back to queued: the run was lost and the job may resume
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PAUSED, JobState.QUEUED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class DeploymentState(StrEnum):
    WANTED = "wanted"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"

    def may_become(self, other: DeploymentState) -> bool:
        return other in DEPLOYMENT_MOVES[self]


DEPLOYMENT_MOVES: dict[DeploymentState, frozenset[DeploymentState]] = {
    DeploymentState.WANTED: frozenset({DeploymentState.STARTING, DeploymentState.GONE, DeploymentState.FAILED}),
    DeploymentState.STARTING: frozenset(
        {DeploymentState.READY, DeploymentState.DRAINING, DeploymentState.FAILED, DeploymentState.WANTED}
    ),
    # back to wanted: the engine died and is to be started again
    DeploymentState.READY: frozenset({DeploymentState.DRAINING, DeploymentState.WANTED, DeploymentState.FAILED}),
    DeploymentState.DRAINING: frozenset({DeploymentState.GONE, DeploymentState.FAILED}),
    DeploymentState.FAILED: frozenset({DeploymentState.WANTED, DeploymentState.GONE}),
    DeploymentState.GONE: frozenset({DeploymentState.WANTED}),
}
