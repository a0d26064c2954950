"""A real training, on a real server, and `kill -9` at the worst moments."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from doors import serving
from killing import kill_at_random_moments
from modelworks.client import Client
from modelworks.core.nouns import Adapter, Event, Job
from modelworks.core.states import JobState
from tiny import tiny_llama

STEPS = 40
SPEC = {
    "model": "org/tiny",
    "dataset": "rows",
    "max_steps": STEPS,
    "save_steps": 5,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "max_length": 64,
    "seed": 7,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    tiny_llama(folder / "tiny")
    lines = [
        json.dumps({"prompt": f"Count to {number}.", "completion": "1 " * (number % 9 + 1)}) for number in range(60)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A workspace; whatever a test leaves running in it is ended."""
    folder = tmp_path / "home"
    yield folder
    for path in folder.glob("jobs/*/process.json"):
        for process in session_of(json.loads(path.read_text())["pid"]):
            process.kill()


def session_of(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def fill(client: Client, sources: Path) -> None:
    client.add_model(sources / "tiny", "org/tiny")
    client.upload(sources / "rows.jsonl", "rows")


def runner(home: Path, job: Job) -> int:
    return int(json.loads((home / "jobs" / job.id / "process.json").read_text())["pid"])


def wait_for(client: Client, job: Job, enough: Callable[[Event], bool]) -> None:
    for event in client.events(job.id):
        if enough(event):
            return
    raise AssertionError(f"the job ended first: {client.job(job.id)}\n{client.log(job.id)}")


def at_step(step: int) -> Callable[[Event], bool]:
    return lambda event: event.type == "metric" and int(str(event.body["step"])) >= step


def steps(events: list[Event]) -> list[int]:
    return [int(str(event.body["step"])) for event in events if event.type == "metric" and "loss" in event.body]


def weights(client: Client, name: str) -> dict[str, str]:
    made = client.model(name)
    assert isinstance(made, Adapter)
    return {file.path: file.sha256 for file in made.files if file.path.endswith(".safetensors")}


@pytest.mark.timeout(300)
def test_a_killed_server_leaves_the_training_running_and_the_next_one_goes_on_with_it(
    home: Path, sources: Path
) -> None:
    with serving(home, MODELWORKS_ALLOW_PATHS=str(sources)) as server:
        with Client(server.wait_until_ready()) as client:
            fill(client, sources)
            job = client.submit("train", SPEC | {"name": "adopted", "max_steps": 400, "save_steps": 200})
            wait_for(client, job, at_step(3))
        pid = runner(home, job)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert psutil.pid_exists(pid)

    with serving(home) as server, Client(server.wait_until_ready()) as client:
        told = list(client.events(job.id))
        ended = client.job(job.id)

    assert (ended.state, ended.runs) == (JobState.SUCCEEDED, 1)
    assert runner(home, job) == pid
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert steps(told) == list(range(1, 401))


@pytest.mark.timeout(300)
def test_a_killed_trainer_goes_on_from_its_checkpoint_and_ends_with_the_same_weights(home: Path, sources: Path) -> None:
    with (
        serving(
            home, MODELWORKS_ALLOW_PATHS=str(sources), MODELWORKS_MAX_RUNS="9", MODELWORKS_RETRY_DELAY_SECONDS="0.1"
        ) as server,
        Client(server.wait_until_ready()) as client,
    ):
        fill(client, sources)
        changes = {"gradient_accumulation_steps": 2, "lora_dropout": 0.1, "eval_steps": 10}
        whole = client.submit("train", SPEC | changes | {"name": "whole"})
        client.wait(whole.id)
        cut = client.submit("train", SPEC | changes | {"name": "cut"})
        checkpoints = home / "jobs" / cut.id / "checkpoints"
        hit = kill_at_random_moments(home / "jobs" / cut.id, 2, 16, lambda: client.job(cut.id).state.is_final)
        ended = client.wait(cut.id)
        told = list(client.events(cut.id))

        assert (ended.state, ended.runs) == (JobState.SUCCEEDED, len(hit) + 1), client.log(cut.id)
        assert len(hit) == 2
        assert any("resuming from step" in str(event.body.get("message")) for event in told)
        assert steps(told)[-1] == STEPS
        assert weights(client, "cut") == weights(client, "whole")
    assert not checkpoints.exists()


@pytest.mark.timeout(300)
def test_a_trainer_that_dies_each_time_is_given_up_after_three_runs(home: Path, sources: Path) -> None:
    with (
        serving(home, MODELWORKS_ALLOW_PATHS=str(sources), MODELWORKS_RETRY_DELAY_SECONDS="0.1") as server,
        Client(server.wait_until_ready()) as client,
    ):
        fill(client, sources)
        job = client.submit("train", SPEC | {"name": "doomed"})
        killed: set[int] = set()
        while not client.job(job.id).state.is_final:
            process = home / "jobs" / job.id / "process.json"
            if process.exists() and (pid := int(json.loads(process.read_text())["pid"])) not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.02)
        ended = client.job(job.id)

        assert ended.error is not None
        assert (ended.state, ended.runs, ended.error.code, len(killed)) == (JobState.FAILED, 3, "runner_died", 3)
        assert "doomed" not in [model.name for model in client.models()]


@pytest.mark.timeout(300)
def test_a_cancelled_training_ends_without_an_orphan_and_publishes_nothing(home: Path, sources: Path) -> None:
    with (
        serving(home, MODELWORKS_ALLOW_PATHS=str(sources)) as server,
        Client(server.wait_until_ready()) as client,
    ):
        fill(client, sources)
        job = client.submit("train", SPEC | {"name": "unwanted", "max_steps": 100_000})
        waiting = client.submit("train", SPEC | {"name": "never"})
        wait_for(client, job, at_step(2))
        pid = runner(home, job)
        at_once = client.cancel(waiting.id)
        began = time.monotonic()
        ended = client.cancel(job.id)
        took = time.monotonic() - began

        assert at_once.state is JobState.CANCELLED
        assert ended.state is JobState.CANCELLED
        assert took < 30
        assert session_of(pid) == []
        assert [model.name for model in client.models()] == ["org/tiny"]
        assert client.job(job.id).state is JobState.CANCELLED
