"""Following a job over real connections: live, again after a break, across a restart, and with the server stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from doors import end, insert_job, listening, report, start
from modelworks.app.wiring import App, open_app
from modelworks.client import Client
from modelworks.core.config import Settings
from modelworks.core.nouns import Event, Job
from modelworks.core.states import JobState

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = open_app(Settings.model_validate({"home": tmp_path, "hub_offline": True}))
    yield app
    app.close()


class Follower(threading.Thread):
    """Follows a job with the client and keeps what it hears."""

    def __init__(self, url: str, job: Job, after: int = 0) -> None:
        super().__init__(daemon=True)
        self.url, self.job, self.after = url, job, after
        self.heard: list[Event] = []
        self.heard_at: dict[int, float] = {}
        self.news = threading.Condition()
        self.start()

    def run(self) -> None:
        with Client(self.url) as client:
            for event in client.events(self.job.id, self.after):
                with self.news:
                    self.heard.append(event)
                    self.heard_at[event.seq] = time.monotonic()
                    self.news.notify_all()

    def wait_for(self, seq: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: seq in self.heard_at, timeout=30), self.heard

    @property
    def numbers(self) -> list[int]:
        return [event.seq for event in self.heard]


@contextmanager
def running_job(app: App) -> Iterator[Job]:
    yield start(app.services, insert_job(app.services))


def test_events_arrive_while_the_job_runs_and_the_stream_ends_with_it(app: App) -> None:
    with listening(app) as url, running_job(app) as job:
        report(app.services, job, [{"step": 1}])
        follower = Follower(url, job)
        follower.wait_for(3)

        report(app.services, job, [{"step": 2}])
        told_at = time.monotonic()
        follower.wait_for(4)
        end(app.services, job)
        follower.join(10)

    assert not follower.is_alive()
    assert follower.numbers == [1, 2, 3, 4, 5]
    assert follower.heard[-1].body["state"] == "succeeded"
    assert follower.heard_at[4] - told_at < 2


def test_followers_that_come_at_any_time_hear_everything_once_and_in_order(app: App) -> None:
    with listening(app) as url, running_job(app) as job:
        followers = []
        for number in range(30):
            if number % 3 == 0:
                followers.append(Follower(url, job, after=number % 7))
            report(app.services, job, [{"step": number}] * 40)
        end(app.services, job)
        for follower in followers:
            follower.join(30)

    # queued, running, 30 x 40 metrics, succeeded
    for follower in followers:
        assert follower.numbers == list(range(follower.after + 1, 1203 + 1))


def test_a_broken_connection_is_taken_up_where_it_broke(app: App) -> None:
    with listening(app) as url, running_job(app) as job:
        report(app.services, job, [{"step": number} for number in range(5)])
        address = f"{url}/modelworks/jobs/{job.id}/events"
        with httpx2.stream("GET", address, headers=STREAM) as reply:
            first = [line for _, line in zip(range(9), reply.iter_lines(), strict=False) if line.startswith("id: ")]
        last = first[-1].removeprefix("id: ")
        end(app.services, job)

        rest = httpx2.get(address, headers=STREAM | {"Last-Event-ID": last}).text

    numbers = [line for line in rest.splitlines() if line.startswith("id: ")]
    assert first + numbers == [f"id: {number}" for number in range(1, 9)]


def test_the_client_goes_on_over_a_restart_without_gap_or_repeat(app: App) -> None:
    with running_job(app) as job:
        with listening(app) as url:
            report(app.services, job, [{"step": 1}])
            follower = Follower(url, job)
            follower.wait_for(3)
        report(app.services, job, [{"step": 2}])
        with listening(app, port=int(url.rpartition(":")[2])):
            follower.wait_for(4)
            end(app.services, job)
            follower.join(30)

    assert follower.numbers == [1, 2, 3, 4, 5]


def test_a_stopping_server_says_goodbye_on_its_streams_and_ends_soon(app: App) -> None:
    with running_job(app) as job:
        with listening(app) as url:
            http = httpx2.Client()
            reply = http.send(
                http.build_request("GET", f"{url}/modelworks/jobs/{job.id}/events", headers=STREAM), stream=True
            )
            lines = reply.iter_lines()
            assert next(lines) == "id: 1"
            began = time.monotonic()
        took = time.monotonic() - began
        rest = list(lines)
        http.close()

    assert took < 5
    assert "event: stopping" in rest
    assert rest[-1] == ""


def test_a_quiet_stream_says_that_it_lives(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelworks.web.event_stream.KEEP_ALIVE_SECONDS", 0.0)
    with (
        listening(app) as url,
        running_job(app) as job,
        httpx2.stream("GET", f"{url}/modelworks/jobs/{job.id}/events", headers=STREAM) as reply,
    ):
        assert any(line == ": keep-alive" for line in reply.iter_lines())


def test_events_that_another_process_wrote_are_found_as_well(app: App) -> None:
    # Another process's worker tells its own feed, not ours.
    other = open_app(app.services.settings)
    with listening(app) as url, running_job(app) as job:
        follower = Follower(url, job)
        follower.wait_for(2)
        report(other.services, job, [{"step": 1}])
        follower.wait_for(3)
        end(other.services, job)
        follower.join(10)
    other.close()

    assert follower.numbers == [1, 2, 3, 4]


def test_cancelling_waits_for_the_run_and_tells_the_state_that_won(app: App) -> None:
    with listening(app) as url, running_job(app) as job, Client(url) as client:
        answers: list[Job] = []
        asking = threading.Thread(target=lambda: answers.append(client.cancel(job.id)))
        asking.start()
        follower = Follower(url, job)
        follower.wait_for(3)
        assert follower.heard[2].body["message"] == "cancel requested"

        end(app.services, job, JobState.SUCCEEDED)
        asking.join(10)

    assert [answer.state for answer in answers] == [JobState.SUCCEEDED]
