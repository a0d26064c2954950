"""Pausing and resuming a job by the command line, our own API and its client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from doors import insert_job, listening, start
from modelworks.app.wiring import App, open_app
from modelworks.client import Client
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict
from modelworks.core.states import JobState
from modelworks.store import jobs as queue


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    opened = open_app(Settings.model_validate({"home": tmp_path / "home", "hub_offline": True}))
    yield opened
    opened.close()


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MODELWORKS_HOME": str(home), "MODELWORKS_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", "from modelworks.cli.main import main; main()", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_client_pauses_and_resumes(app: App) -> None:
    job = insert_job(app.services)
    with listening(app) as url, Client(url) as client:
        assert client.pause(job.id).state is JobState.PAUSED
        assert [found.id for found in client.jobs(states=(JobState.PAUSED,))] == [job.id]
        assert client.resume(job.id).state is JobState.QUEUED
        client.cancel(job.id)
        with pytest.raises(Conflict, match="is cancelled; only one that has not ended can be paused"):
            client.pause(job.id)


def test_pausing_a_running_job_answers_once_its_run_is_gone(app: App) -> None:
    services = app.services
    job = start(services, insert_job(services))
    asked = queue.request_pause(services.database, job.id)
    assert (asked.state, asked.pause_requested) == (JobState.RUNNING, True)
    queue.stop_run(services.database, job.id, job.runs)

    with listening(app) as url, Client(url) as client:
        assert client.pause(job.id).state is JobState.PAUSED


def test_a_cancelled_pause_leaves_no_checkpoint_behind(app: App) -> None:
    services = app.services
    job = insert_job(services)
    services.pause(job.id)
    (services.folder(job.id).checkpoints / "checkpoint-5").mkdir(parents=True)

    assert services.cancel(job.id).state is JobState.CANCELLED

    assert not services.folder(job.id).checkpoints.exists()


def test_the_command_line_pauses_and_resumes(app: App, tmp_path: Path) -> None:
    home = tmp_path / "home"
    # Of a kind of slot that this machine lacks, so that no worker takes it.
    new = queue.NewJob(kind="pull", spec={"source": "x"}, inputs={}, needs={"quantum": 1})
    job = queue.insert_job(app.services.database, new)

    paused = command(home, "jobs", "pause", job.id)
    shown = json.loads(command(home, "jobs", "show", job.id, "--json").stdout)
    resumed = command(home, "jobs", "resume", job.id, "--no-wait")
    app.services.cancel(job.id)
    refused = command(home, "jobs", "resume", job.id, "--no-wait")

    assert (paused.returncode, paused.stdout.split()) == (0, [job.id, "paused"])
    assert (shown["state"], shown["pause_requested"]) == ("paused", True)
    assert (resumed.returncode, resumed.stdout.strip()) == (0, job.id)
    assert refused.returncode != 0
    assert "only one that has not ended can be resumed" in refused.stderr
