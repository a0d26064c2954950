"""Sweeps through the real services, worker and runner processes; only the trainings train nothing."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import sweep_runner
from doors import ServerProcess, serving
from modelworks.app import wiring
from modelworks.app.wiring import App, open_app
from modelworks.client import Client
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, Invalid
from modelworks.core.nouns import Job, JsonObject
from modelworks.core.states import JobState
from modelworks.data.spec import ImportSpec
from modelworks.store import jobs as queue
from tiny import tiny_llama

SPEC = {"model": "org/tiny", "dataset": "rows", "max_length": 64, "name": "me/best", "warmup_steps": 0.01}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    tiny_llama(folder / "tiny")
    rows = [json.dumps({"prompt": f"{number}?", "completion": f"{number}!"}) for number in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def app(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setattr(wiring, "RUNNER", (sys.executable, sweep_runner.__file__))
    settings: JsonObject = {"home": str(tmp_path / "home"), "allow_paths": [str(sources)], "slots": {"cpu": 4}}
    opened = open_app(Settings.model_validate(settings))
    opened.services.catalog.add_model(sources / "tiny", "org/tiny")
    opened.services.catalog.upload(sources / "rows.jsonl", ImportSpec(name="rows"))
    yield opened
    for job in opened.services.jobs(states=(JobState.RUNNING,)):
        opened.worker.executor.kill(opened.services.folder(job.id))
    opened.close()


def work_until(app: App, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        app.worker.step()
        time.sleep(0.01)


def work_to_the_end(app: App, sweep: Job) -> Job:
    work_until(app, lambda: app.services.job(sweep.id).state.is_final)
    return app.services.job(sweep.id)


def children(app: App, sweep: Job) -> list[Job]:
    return queue.children(app.services.database, sweep)


def table(job: Job) -> list[tuple[object, ...]]:
    assert job.result is not None
    rows = job.result["table"]
    assert isinstance(rows, list)
    return [(row["name"], row["values"], row["state"]) for row in rows if isinstance(row, dict)]


def test_a_sweep_ends_with_a_table_a_picture_and_its_name_on_the_best(app: App) -> None:
    sweep = app.services.submit(
        "train", SPEC | {"sweep": {"lr": "0.03,0.02", "lora_r": [8, 13]}, "sweep_metric": "acuracy"}
    )

    ended = work_to_the_end(app, sweep)

    assert (ended.kind, ended.state, ended.runs) == ("sweep", JobState.SUCCEEDED, 1)
    # The losses are 0.02 and 0.01, and two of them failed.
    assert table(ended) == [
        ("me/best-3", {"learning_rate": 0.02, "lora_r": 8}, "succeeded"),
        ("me/best-1", {"learning_rate": 0.03, "lora_r": 8}, "succeeded"),
        ("me/best-2", {"learning_rate": 0.03, "lora_r": 13}, "failed"),
        ("me/best-4", {"learning_rate": 0.02, "lora_r": 13}, "failed"),
    ]
    assert ended.result is not None
    assert {key: ended.result[key] for key in ("best", "metric", "better")} == {
        "best": "me/best-3", "metric": "loss", "better": "lower",
    }  # fmt: skip
    assert ended.result["note"] == "no training measured acuracy; measured were accuracy, loss, train_loss"
    assert str(ended.result["picture"]).count("<polyline") == 4
    assert app.services.catalog.model("me/best").name == "me/best-3"
    told = [dict(event.body) for event in app.services.events(sweep.id)]
    assert [body["done"] for body in told if "done" in body][-1] == 4
    assert sum("rank 13 brings no luck" in str(body.get("message")) for body in told) == 2
    assert any(body.get("message") == "me/best now means me/best-3" for body in told)


def test_another_metric_can_choose_and_where_all_fail_the_sweep_fails_and_can_be_tried_again(app: App) -> None:
    chosen = {"sweep_metric": "accuracy", "sweep": {"lr": [0.01, 0.09]}}
    sweep = app.services.submit("sweep", SPEC | {"name": "most"} | chosen)
    doomed = app.services.submit("train", SPEC | {"lora_r": 13, "sweep": {"seed": [1, 2]}})

    most, failed = work_to_the_end(app, sweep), work_to_the_end(app, doomed)

    # The accuracy is the learning rate, and more of it is better.
    assert most.result is not None
    assert (most.result["best"], most.result["better"]) == ("most-2", "higher")
    assert failed.error is not None
    assert (failed.state, failed.error.code, len(failed.error.problems)) == (JobState.FAILED, "sweep_failed", 2)
    assert "rank 13 brings no luck" in failed.error.message
    again = app.services.retry(failed.id)
    assert [child.spec["seed"] for child in children(app, again)] == [1, 2]
    assert app.services.cancel(again.id).state is JobState.CANCELLED


def test_nothing_is_queued_where_a_training_is_wrong_or_a_name_is_taken(app: App, sources: Path) -> None:
    wrong = {"sweep": {"max_length": [64, 9999], "strategy": ["sft", "nothing"]}}
    with pytest.raises(Invalid) as raised:
        app.services.submit("train", SPEC | wrong)
    assert {problem.where for problem in raised.value.problems} >= {"max_length=64, strategy=nothing"}
    app.services.catalog.add_model(sources / "tiny", "me/best-2")
    with pytest.raises(Conflict, match="'me/best-2' exists already"):
        app.services.submit("train", SPEC | {"sweep": {"seed": [1, 2]}})

    assert app.services.jobs() == []


def test_a_sweep_is_paused_resumed_cancelled_and_tried_again_with_its_trainings(app: App) -> None:
    services = app.services
    slow = SPEC | {"warmup_steps": 0.02}
    # One of three ends soon; the others have not when the sweep is paused.
    sweep = services.submit("train", slow | {"sweep": {"max_steps": [1, 500, 400]}})
    work_until(
        app, lambda: [child.state.value for child in children(app, sweep)] == ["succeeded", "running", "running"]
    )

    services.pause(sweep.id, wait_seconds=0)
    work_until(app, lambda: services.job(sweep.id).state is JobState.PAUSED)
    assert [child.state.value for child in children(app, sweep)] == ["succeeded", "paused", "paused"]
    services.resume(sweep.id)
    work_until(app, lambda: [child.state.value for child in children(app, sweep)][1:] == ["running", "running"])
    services.cancel(sweep.id, wait_seconds=0)
    ended = work_to_the_end(app, sweep)

    assert ended.state is JobState.CANCELLED
    assert [row[2] for row in table(ended)] == ["succeeded", "cancelled", "cancelled"]
    assert "me/best" not in [model.name for model in services.servable()]
    again = services.retry(sweep.id)
    ids = [child.id for child in children(app, again)]
    assert ids[0] == children(app, sweep)[0].id
    assert not {*ids[1:]} & {child.id for child in children(app, sweep)}
    assert services.cancel(again.id).state is JobState.CANCELLED
    assert [child.state.value for child in children(app, again)] == ["succeeded", "cancelled", "cancelled"]


def test_after_a_killed_server_each_training_has_run_once_and_the_sweep_ends(tmp_path: Path, sources: Path) -> None:
    home = tmp_path / "home"
    body = SPEC | {"warmup_steps": 0.05, "max_steps": 8, "sweep": {"lr": [0.01, 0.02], "seed": [1, 2]}}

    def started() -> AbstractContextManager[ServerProcess]:
        before = sweep_runner.IN_PLACE
        return serving(home, before=before, MODELWORKS_ALLOW_PATHS=str(sources), MODELWORKS_SLOTS="cpu:2")

    with started() as server:
        with Client(server.wait_until_ready()) as client:
            client.add_model(sources / "tiny", "org/tiny")
            client.upload(sources / "rows.jsonl", "rows")
            sweep = client.submit("train", body, idempotency_key="once")
            for event in client.events(sweep.id):
                if event.body.get("done") == 1:
                    break
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()

    with started() as server, Client(server.wait_until_ready()) as client:
        same = client.submit("train", body, idempotency_key="once")
        ended = client.wait(sweep.id)
        told = [event.body.get("done") for event in client.events(sweep.id) if event.type == "progress"]
        trainings = [job for job in client.jobs() if job.kind == "train"]
        named = client.model("me/best")

    assert (same.id, ended.state, named.name) == (sweep.id, JobState.SUCCEEDED, "me/best-1")
    assert [(job.state, job.runs) for job in trainings] == [(JobState.SUCCEEDED, 1)] * 4
    assert [done for done in told if isinstance(done, int)] == sorted({done for done in told if isinstance(done, int)})
    assert told[-1] == 4
