from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from modelworks.core import clock
from modelworks.core.errors import Conflict, NotFound
from modelworks.core.nouns import EventType, Failure
from modelworks.core.states import JobState
from modelworks.store import events
from modelworks.store import jobs as queue
from modelworks.store.database import Database, open_database
from modelworks.store.events import NewEvent
from modelworks.store.jobs import Ending, NewJob


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Every kind of database is run through the same tests."""
    url = f"sqlite:///{tmp_path / 'test.db'}" if request.param == "sqlite" else empty_postgres()
    opened = open_database(url)
    yield opened
    opened.close()


def empty_postgres() -> str:
    url = os.environ.get("MODELWORKS_TEST_POSTGRES")
    if not url:
        pytest.skip("postgres: MODELWORKS_TEST_POSTGRES names no database")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


def new_job(**changes: object) -> NewJob:
    values: dict[str, object] = {"kind": "train", "spec": {"a": 1}, "inputs": {}, "needs": {"cpu": 1}}
    return NewJob(**(values | changes))  # type: ignore[arg-type]  # a test's shorthand


def test_the_highest_priority_is_claimed_first_and_then_the_oldest(database: Database) -> None:
    first, _, urgent = (queue.insert_job(database, new_job(priority=priority)) for priority in (0, 0, 5))

    claimed = [queue.claim(database, {"cpu": 2}), queue.claim(database, {"cpu": 2}), queue.claim(database, {"cpu": 2})]

    assert [claim and claim.job.id for claim in claimed] == [urgent.id, first.id, None]


def test_a_job_that_needs_what_this_machine_lacks_waits_and_lets_others_pass(database: Database) -> None:
    queue.insert_job(database, new_job(needs={"gpu": 1}, priority=9))
    small = queue.insert_job(database, new_job())

    claim = queue.claim(database, {"cpu": 1})

    assert claim is not None
    assert claim.job.id == small.id


def test_one_idempotency_key_makes_one_job(database: Database) -> None:
    first = queue.insert_job(database, new_job(idempotency_key="k"))
    again = queue.insert_job(database, new_job(idempotency_key="k"))

    assert again.id == first.id
    with pytest.raises(Conflict, match="another request"):
        queue.insert_job(database, new_job(idempotency_key="k", spec={"a": 2}))


def test_a_late_run_cannot_end_a_job_that_was_started_again(database: Database) -> None:
    job = queue.insert_job(database, new_job())
    queue.claim(database, {"cpu": 1})
    assert queue.lose_run(database, job.id, 1, reason="died", not_before=clock.now())
    queue.claim(database, {"cpu": 1})

    assert not queue.end_job(database, job.id, 1, Ending(state=JobState.SUCCEEDED))
    assert queue.get_job(database, job.id).state is JobState.RUNNING
    assert queue.end_job(database, job.id, 2, Ending(state=JobState.SUCCEEDED))


def test_a_final_state_stays(database: Database) -> None:
    job = queue.insert_job(database, new_job())
    queue.claim(database, {"cpu": 1})
    failure = Failure(code="bug", message="x", problems=("p",))
    queue.end_job(database, job.id, 1, Ending(state=JobState.FAILED, failure=failure))

    assert not queue.end_job(database, job.id, 1, Ending(state=JobState.SUCCEEDED))
    cancelled = queue.request_cancel(database, job.id)
    assert cancelled.state is JobState.FAILED
    assert cancelled.error == failure


def test_a_queued_job_is_cancelled_at_once(database: Database) -> None:
    job = queue.insert_job(database, new_job(aliases=("train_123456",)))

    assert queue.request_cancel(database, "train_123456").state is JobState.CANCELLED
    assert queue.claim(database, {"cpu": 1}) is None
    assert [event.body["state"] for event in events.read(database, job.id)] == ["queued", "cancelled"]


def states_of(database: Database, job_id: str) -> list[object]:
    return [event.body["state"] for event in events.read(database, job_id) if event.type == "state"]


def test_a_queued_job_is_paused_at_once_and_frees_its_slot_until_it_is_resumed(database: Database) -> None:
    job = queue.insert_job(database, new_job())

    assert queue.request_pause(database, job.id).state is JobState.PAUSED
    assert queue.request_pause(database, job.id).state is JobState.PAUSED
    assert queue.claim(database, {"cpu": 1}) is None
    assert [claim.job.id for claim in queue.unfinished(database)] == [job.id]
    resumed = queue.resume(database, job.id)
    assert (resumed.state, resumed.pause_requested) == (JobState.QUEUED, False)
    assert queue.claim(database, {"cpu": 1}) is not None
    assert states_of(database, job.id) == ["queued", "paused", "queued", "running"]


def test_a_paused_job_can_be_cancelled_and_not_resumed_after_that(database: Database) -> None:
    job = queue.insert_job(database, new_job())
    queue.request_pause(database, job.id)

    assert queue.request_cancel(database, job.id).state is JobState.CANCELLED
    with pytest.raises(Conflict, match=f"job {job.id} is cancelled; only one that has not ended can be resumed"):
        queue.resume(database, job.id)
    with pytest.raises(Conflict, match="can be paused"):
        queue.request_pause(database, job.id)


def test_what_a_stopped_run_becomes_is_decided_by_what_is_asked_for_last(database: Database) -> None:
    ids = [queue.insert_job(database, new_job()).id for _ in range(3)]
    for job_id in ids:
        queue.claim(database, {"cpu": 3})
        queue.request_pause(database, job_id)
    queue.resume(database, ids[1])
    queue.request_cancel(database, ids[2])

    became = [queue.stop_run(database, job_id, 1) for job_id in ids]

    assert became == [JobState.PAUSED, JobState.QUEUED, JobState.CANCELLED]
    assert [queue.get_job(database, job_id).state for job_id in ids] == became
    assert [queue.deaths(database, job_id) for job_id in ids] == [0, 0, 0]


def test_a_late_run_cannot_pause_a_job_that_was_started_again(database: Database) -> None:
    job = queue.insert_job(database, new_job())
    queue.claim(database, {"cpu": 1})
    queue.lose_run(database, job.id, 1, reason="died", not_before=clock.now())
    queue.claim(database, {"cpu": 1})
    queue.request_pause(database, job.id)

    queue.stop_run(database, job.id, 1)

    assert queue.get_job(database, job.id).state is JobState.RUNNING
    assert queue.deaths(database, job.id) == 1


def test_labels_are_kept_as_they_were_told(database: Database) -> None:
    job = queue.insert_job(database, new_job(labels={"suffix": "mine"}))

    assert queue.get_job(database, job.id).labels == {"suffix": "mine"}


def test_a_lost_job_waits_until_its_time(database: Database) -> None:
    job = queue.insert_job(database, new_job())
    queue.claim(database, {"cpu": 1})
    queue.lose_run(database, job.id, 1, reason="died", not_before=clock.now() + timedelta(hours=1))

    assert queue.claim(database, {"cpu": 1}) is None


def test_events_are_taken_over_once(database: Database) -> None:
    job = queue.insert_job(database, new_job())
    new = [NewEvent(clock.now(), EventType.LOG, {"message": str(number)}) for number in range(3)]

    assert events.take_over(database, job.id, new, start=0, end=30)
    assert not events.take_over(database, job.id, new, start=0, end=30)

    told = events.read(database, job.id)
    assert [event.seq for event in told] == [1, 2, 3, 4]
    assert [event.body.get("message") for event in told] == [None, "0", "1", "2"]
    assert [event.seq for event in events.read(database, job.id, after=3)] == [4]


def test_an_unknown_job_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match="no job 'nobody'"):
        queue.get_job(database, "nobody")


def test_jobs_are_listed_newest_first_page_by_page(database: Database) -> None:
    ids = [queue.insert_job(database, new_job()).id for _ in range(5)]
    newest_first = sorted(ids, reverse=True)

    first = queue.list_jobs(database, limit=3)
    second = queue.list_jobs(database, limit=3, before=first[-1].id)

    assert [job.id for job in first + second] == newest_first
