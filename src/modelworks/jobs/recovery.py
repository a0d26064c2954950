"""What to do with a run, decided from what can be seen of it: the same at every look and after every restart."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta
from enum import Enum, auto

from modelworks.core.nouns import Failure
from modelworks.jobs.folder import RunReport


class Action(Enum):
    WAIT = auto()
    """The run goes on."""
    FINISH = auto()
    """It wrote how it ended."""
    STOP = auto()
    """It stopped, or died, after somebody asked it to: the job is cancelled or paused, and nothing is lost."""
    RUN_AGAIN = auto()
    """It died; its job goes back to the queue."""
    GIVE_UP = auto()
    """It died, as often as we allow."""


def decide(*, alive: bool, report: RunReport | None, stop_requested: bool, deaths: int, max_runs: int) -> Action:
    """An alive run may still be writing: only a dead one's report counts, so nothing is published twice.

    `deaths` counts the runs that died, this one among them; those that stopped because they were asked to do not.
    """
    if alive:
        return Action.WAIT
    if report is not None:
        return Action.STOP if report.outcome in {"cancelled", "paused"} else Action.FINISH
    if stop_requested:
        return Action.STOP
    return Action.RUN_AGAIN if deaths < max_runs else Action.GIVE_UP


def next_start(now: datetime, deaths: int, delay_seconds: float) -> datetime:
    """The delay doubles with each death, up to ten minutes."""
    return now + timedelta(seconds=min(600.0, delay_seconds * 2 ** (deaths - 1)))


def cause(exit_code: int | None) -> str:
    """What ended a process, as far as its parent is told."""
    if exit_code is None:
        return "killed, or out of memory"
    if exit_code >= 0:
        return f"exit status {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}: killed, or out of memory" if -exit_code == signal.SIGKILL else name


def died(deaths: int, tail: str, exit_code: int | None = None, *, resumable: bool = False) -> Failure:
    last = f"; it last printed:\n{tail}" if tail else "; it printed nothing"
    then = "a retry goes on from its last checkpoint" if resumable else "it left no checkpoint to go on from"
    return Failure(
        code="runner_died",
        message=f"the runner died {deaths} times without saying why ({cause(exit_code)}); {then}{last}",
    )
