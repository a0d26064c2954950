from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from modelworks.jobs.folder import RunReport
from modelworks.jobs.recovery import Action, decide, died, next_start

REPORT = RunReport(run=1, outcome="succeeded")
PAUSED = RunReport(run=1, outcome="paused")


@pytest.mark.parametrize(
    ("alive", "report", "stop", "deaths", "action"),
    [
        (True, None, False, 1, Action.WAIT),
        # A live run may still be at its last act: its report is read when it is gone.
        (True, REPORT, False, 1, Action.WAIT),
        (False, REPORT, False, 1, Action.FINISH),
        # It finished before the cancel reached it: finished is the state that won.
        (False, REPORT, True, 1, Action.FINISH),
        (False, None, True, 1, Action.STOP),
        (False, PAUSED, True, 1, Action.STOP),
        # It stopped, but the pause was taken back meanwhile: that is no loss either.
        (False, PAUSED, False, 3, Action.STOP),
        (False, None, False, 1, Action.RUN_AGAIN),
        (False, None, False, 2, Action.RUN_AGAIN),
        (False, None, False, 3, Action.GIVE_UP),
    ],
)
def test_what_is_seen_decides(alive: bool, report: RunReport | None, stop: bool, deaths: int, action: Action) -> None:
    assert decide(alive=alive, report=report, stop_requested=stop, deaths=deaths, max_runs=3) is action


def test_the_delay_doubles_up_to_ten_minutes() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    assert [next_start(now, deaths, 10) - now for deaths in (1, 2, 3, 20)] == [
        timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40), timedelta(minutes=10),
    ]  # fmt: skip


def test_the_failure_names_the_signal_what_is_left_and_the_last_lines() -> None:
    killed = died(3, "boom", -9, resumable=True).message

    assert "(SIGKILL: killed, or out of memory); a retry goes on from its last checkpoint" in killed
    assert "it last printed:\nboom" in killed
    assert "(exit status 1); it left no checkpoint" in died(3, "", 1).message
    assert "(SIGSEGV)" in died(3, "", -11).message
