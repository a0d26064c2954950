"""The worker with real runner processes, killed and restarted at will."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from modelworks.core.config import Settings
from modelworks.core.nouns import Job, JsonObject
from modelworks.core.states import JobState
from modelworks.jobs.executors.local import LocalExecutor
from modelworks.jobs.folder import JobFolder
from modelworks.jobs.worker import Worker
from modelworks.store import catalog, events
from modelworks.store import jobs as queue
from modelworks.store.database import Database, open_database
from modelworks.store.jobs import NewJob

RUNNER = (sys.executable, str(Path(__file__).parent.parent / "scripted_runner.py"))
ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    yield opened
    opened.close()


@pytest.fixture
def make_worker(database: Database, tmp_path: Path) -> Callable[[], Worker]:
    settings = Settings(home=tmp_path, slots={"cpu": 4}, max_runs=3, retry_delay_seconds=0.01, cancel_grace_seconds=0.5)
    return lambda: Worker(database=database, executor=LocalExecutor(RUNNER, ENVIRONMENT), settings=settings)


def submit(database: Database, **spec: object) -> Job:
    body: JsonObject = json.loads(json.dumps({"steps": 3} | spec))
    return queue.insert_job(database, NewJob(kind="scripted", spec=body, inputs={}, needs={"cpu": 1}))


def work_until(worker: Worker, done: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        worker.step()
        time.sleep(0.01)


def is_final(database: Database, job: Job) -> Callable[[], bool]:
    return lambda: queue.get_job(database, job.id).state.is_final


def steps_told(database: Database, job: Job) -> list[object]:
    return [event.body["step"] for event in events.read(database, job.id) if event.type == "metric"]


def runner_pid(worker: Worker, job: Job) -> int:
    return int(json.loads(worker.folder(job.id).process.read_text())["pid"])


def test_a_job_runs_to_its_end_and_publishes(
    database: Database, make_worker: Callable[[], Worker], tmp_path: Path
) -> None:
    worker = make_worker()
    job = submit(database, publish="rows", output_dir="results")

    work_until(worker, is_final(database, job))

    ended = queue.get_job(database, job.id)
    assert (ended.state, ended.result, ended.runs) == (JobState.SUCCEEDED, {"first_step": 1}, 1)
    assert steps_told(database, job) == [1, 2, 3]
    told = events.read(database, job.id)
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    published = catalog.find(database, tmp_path, "datasets", "rows")
    assert published is not None
    assert (published.path / "train.jsonl").read_text() == '{"text": "a"}\n'
    assert published.job_id == job.id
    assert published.number == 1
    assert (tmp_path / "results" / job.id / "train.jsonl").read_text() == '{"text": "a"}\n'
    assert not worker.folder(job.id).staged.exists()


def test_a_refused_job_fails_with_its_reason_and_is_not_run_again(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    job = submit(database, refuse=True)

    work_until(make_worker(), is_final(database, job))

    ended = queue.get_job(database, job.id)
    assert ended.error is not None
    assert (ended.state, ended.runs, ended.error.code) == (JobState.FAILED, 1, "invalid")
    assert ended.error.message == "this spec asks to be refused"


def test_a_killed_runner_goes_on_from_its_checkpoint(database: Database, make_worker: Callable[[], Worker]) -> None:
    job = submit(database, steps=4, die_at=2)

    work_until(make_worker(), is_final(database, job))

    ended = queue.get_job(database, job.id)
    assert (ended.state, ended.runs, ended.result) == (JobState.SUCCEEDED, 2, {"first_step": 3})
    assert steps_told(database, job) == [1, 2, 3, 4]


def test_a_runner_that_always_dies_fails_after_three_runs(
    database: Database, make_worker: Callable[[], Worker], tmp_path: Path
) -> None:
    worker = make_worker()
    job = submit(database, steps=9, step_seconds=0.05)

    def kill_what_runs() -> bool:
        folder = worker.folder(job.id)
        if folder.process.exists() and folder.is_locked():
            os.kill(runner_pid(worker, job), signal.SIGKILL)
        return is_final(database, job)()

    work_until(worker, kill_what_runs)

    ended = queue.get_job(database, job.id)
    assert ended.error is not None
    assert (ended.state, ended.runs, ended.error.code) == (JobState.FAILED, 3, "runner_died")
    assert "(SIGKILL: killed, or out of memory); it left no checkpoint to go on from" in ended.error.message


def test_another_worker_adopts_a_running_job_without_gap_or_repeat(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    first = make_worker()
    job = submit(database, steps=60, step_seconds=0.02)
    work_until(first, lambda: len(steps_told(database, job)) > 5)
    pid = runner_pid(first, job)

    # The first worker is never asked again, as if its server had been killed.
    work_until(make_worker(), is_final(database, job))

    ended = queue.get_job(database, job.id)
    assert (ended.state, ended.runs) == (JobState.SUCCEEDED, 1)
    assert steps_told(database, job) == list(range(1, 61))
    assert runner_pid(first, job) == pid


def test_a_running_job_that_is_cancelled_stops_and_publishes_nothing(
    database: Database, make_worker: Callable[[], Worker], tmp_path: Path
) -> None:
    worker = make_worker()
    job = submit(database, steps=1000, publish="rows")
    work_until(worker, lambda: len(steps_told(database, job)) > 2)

    assert queue.request_cancel(database, job.id).state is JobState.RUNNING
    work_until(worker, is_final(database, job))

    assert queue.get_job(database, job.id).state is JobState.CANCELLED
    assert catalog.find(database, tmp_path, "datasets", "rows") is None
    assert not worker.folder(job.id).is_locked()


def test_a_run_that_will_not_stop_is_killed_when_its_grace_is_over(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    worker = make_worker()
    job = submit(database, steps=1000, step_seconds=0.1, stubborn=True)
    work_until(worker, lambda: len(steps_told(database, job)) > 1)
    pid = runner_pid(worker, job)

    queue.request_cancel(database, job.id)
    work_until(worker, is_final(database, job))

    assert queue.get_job(database, job.id).state is JobState.CANCELLED
    assert not psutil.pid_exists(pid)


def paused(database: Database, job: Job) -> Callable[[], bool]:
    return lambda: queue.get_job(database, job.id).state is JobState.PAUSED


def is_running(worker: Worker, database: Database, job: Job, steps: int = 2) -> None:
    work_until(worker, lambda: len(steps_told(database, job)) > steps)


def test_a_paused_run_frees_its_slot_and_goes_on_from_its_checkpoint(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    worker = make_worker()
    job = submit(database, steps=60, publish="rows")
    is_running(worker, database, job)

    assert queue.request_pause(database, job.id).state is JobState.RUNNING
    work_until(worker, paused(database, job))

    assert not worker.folder(job.id).is_locked()
    other = queue.insert_job(database, NewJob(kind="scripted", spec={"steps": 1}, inputs={}, needs={"cpu": 4}))
    work_until(worker, is_final(database, other))
    assert paused(database, job)()
    assert queue.resume(database, job.id).state is JobState.QUEUED
    work_until(worker, is_final(database, job))
    ended = queue.get_job(database, job.id)
    assert (ended.state, ended.runs) == (JobState.SUCCEEDED, 2)
    assert steps_told(database, job) == list(range(1, 61))


def test_a_run_on_a_full_disk_is_paused_with_the_reason_and_goes_on_when_resumed(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    worker = make_worker()
    job = submit(database, fill_disk=True)

    work_until(worker, paused(database, job))

    waiting = queue.get_job(database, job.id)
    assert waiting.error is not None
    assert (waiting.error.code, waiting.pause_requested) == ("disk_full", True)
    assert events.read(database, job.id)[-1].body["code"] == "disk_full"
    assert queue.resume(database, job.id).error is None
    work_until(worker, is_final(database, job))
    ended = queue.get_job(database, job.id)
    assert (ended.state, ended.error, queue.deaths(database, job.id)) == (JobState.SUCCEEDED, None, 0)


def test_pauses_are_not_counted_as_deaths(database: Database, make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    job = submit(database, steps=300, die_at=300)
    for _pause in range(3):  # as many as a job may die
        is_running(worker, database, job, steps=len(steps_told(database, job)))
        queue.request_pause(database, job.id)
        work_until(worker, paused(database, job))
        queue.resume(database, job.id)

    work_until(worker, is_final(database, job))

    ended = queue.get_job(database, job.id)
    assert (ended.state, ended.runs, queue.deaths(database, job.id)) == (JobState.SUCCEEDED, 5, 1)
    assert steps_told(database, job) == list(range(1, 301))


def test_a_runner_that_dies_while_pausing_is_paused_and_can_be_cancelled(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    worker = make_worker()
    job = submit(database, steps=1000, die_pausing=True)
    is_running(worker, database, job)

    queue.request_pause(database, job.id)
    work_until(worker, paused(database, job))

    assert queue.deaths(database, job.id) == 0
    assert queue.request_cancel(database, job.id).state is JobState.CANCELLED


def test_a_server_killed_while_pausing_is_followed_by_one_that_pauses(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    first = make_worker()
    job = submit(database, steps=1000)
    is_running(first, database, job)
    queue.request_pause(database, job.id)

    # The first worker is never asked again: nobody told the runner.
    work_until(make_worker(), paused(database, job))

    assert not first.folder(job.id).is_locked()


def test_a_run_that_will_not_pause_is_killed_when_its_grace_is_over(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    worker = make_worker()
    job = submit(database, steps=1000, step_seconds=0.1, stubborn=True)
    is_running(worker, database, job, steps=1)
    pid = runner_pid(worker, job)

    queue.request_pause(database, job.id)
    work_until(worker, paused(database, job))

    assert not psutil.pid_exists(pid)
    assert worker.folder(job.id).checkpoints.joinpath("step").exists()


def test_a_cancel_comes_before_a_pause(database: Database, make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    job = submit(database, steps=1000)
    is_running(worker, database, job)

    queue.request_pause(database, job.id)
    queue.request_cancel(database, job.id)
    work_until(worker, is_final(database, job))

    assert queue.get_job(database, job.id).state is JobState.CANCELLED
    assert not worker.folder(job.id).checkpoints.exists()


def test_a_pause_taken_back_lets_the_job_go_on(database: Database, make_worker: Callable[[], Worker]) -> None:
    worker = make_worker()
    job = submit(database, steps=40)
    is_running(worker, database, job)
    queue.request_pause(database, job.id)
    worker.step()  # the runner is told
    queue.resume(database, job.id)

    work_until(worker, is_final(database, job))

    assert queue.get_job(database, job.id).state is JobState.SUCCEEDED
    assert steps_told(database, job) == list(range(1, 41))


def test_a_server_killed_between_renaming_and_recording_publishes_once(
    database: Database, make_worker: Callable[[], Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()
    job = submit(database, publish="rows")

    def die(*_arguments: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modelworks.store.jobs.end_job", die)
        with pytest.raises(KeyboardInterrupt):
            work_until(worker, is_final(database, job))
    assert catalog.find(database, tmp_path, "datasets", "rows") is None

    work_until(make_worker(), is_final(database, job))

    assert queue.get_job(database, job.id).state is JobState.SUCCEEDED
    listed = catalog.list_artifacts(database, tmp_path, "datasets")
    assert [artifact.name for artifact in listed] == ["rows"]
    assert listed[0].path.is_dir()


def test_a_torn_last_line_of_events_is_dropped_and_the_story_goes_on(
    database: Database, make_worker: Callable[[], Worker]
) -> None:
    worker = make_worker()
    job = submit(database, steps=3, die_at=2)
    work_until(worker, lambda: JobFolder(worker.folder(job.id).path).checkpoints.joinpath("step").exists())
    work_until(worker, lambda: not worker.folder(job.id).is_locked())
    with worker.folder(job.id).events.open("ab") as file:
        file.write(b'{"at": "2026-')

    work_until(worker, is_final(database, job))

    assert queue.get_job(database, job.id).state is JobState.SUCCEEDED
    assert steps_told(database, job) == [1, 2, 3]


def test_a_worker_without_jobs_looks_only_when_somebody_has_written(
    make_worker: Callable[[], Worker], database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = queue.running

    def running(database: Database) -> list[queue.Claim]:
        looks.append(time.monotonic())
        return look(database)

    monkeypatch.setattr(queue, "running", running)
    elsewhere = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    worker = make_worker()
    worker.start()
    try:
        time.sleep(1)
        looks.clear()
        time.sleep(1)
        assert not looks

        job = submit(elsewhere)
        deadline = time.monotonic() + 30
        while not queue.get_job(database, job.id).state.is_final:
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.05)
        assert len(looks) > 1
    finally:
        worker.stop()
        elsewhere.close()
