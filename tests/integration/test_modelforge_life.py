"""A client's whole way over real connections, with a worker and an engine: upload, train, follow, ask, delete, stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file, save_file
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from doors import listening
from forge import MODEL, ROWS, as_lines
from modelworks.app.wiring import App, open_app
from modelworks.core.config import Settings
from tiny import tiny_llama

ASKED = {"task": "text-generation", "model_name": MODEL, "dataset": "chat.jsonl", "device": "cpu"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    folder = tiny_llama(tmp_path / "llama")
    app = open_app(Settings(home=tmp_path / "home", hub_offline=True, allow_paths=(tmp_path,)))
    app.services.catalog.add_model(folder, MODEL)
    yield app
    app.close()


def socket_of(url: str, **options: Any) -> ClientConnection:
    connection: ClientConnection = connect(f"ws{url.removeprefix('http')}/ws/training", **options)
    return connection


def next_of(socket: ClientConnection) -> dict[str, Any]:
    update: dict[str, Any] = json.loads(socket.recv(timeout=120))
    return update


def until(socket: ClientConnection, status: str) -> list[dict[str, Any]]:
    """Everything told up to a status."""
    told = [next_of(socket)]
    while told[-1]["status"] != status:
        told.append(next_of(socket))
    return told


def upload(http: httpx2.Client) -> None:
    http.post("/api/upload_dataset", files={"file": ("chat.jsonl", as_lines(ROWS["chat"]))}).raise_for_status()


def test_a_client_uploads_trains_follows_asks_and_deletes(app: App) -> None:
    app.start_worker()
    with listening(app) as url, httpx2.Client(base_url=url, timeout=120) as http, socket_of(url) as socket:
        assert next_of(socket)["status"] == "idle"
        upload(http)
        started = http.post("/api/start_training", json=ASKED | {"learning_rate": 0.01, "max_seq_length": 64}).json()
        assert (started["status"], started["warnings"]) == ("started", [])

        told = until(socket, "completed")

        assert {update["job_id"] for update in told} == {started["job_id"]}
        assert {update["status"] for update in told} == {"training", "completed"}
        assert [update["progress"] for update in told] == sorted(update["progress"] for update in told)
        last = http.get("/api/training_status").json()
        assert last == told[-1]
        # 18 rows in batches of 4, 4 batches a step: 2 steps an epoch
        assert (last["progress"], last["current_step"], last["total_steps"]) == (100.0, 6, 6)
        assert (last["current_epoch"], last["total_epochs"]) == (3, 3)
        assert last["loss"] > 0

        (listed,) = http.get("/api/models").json()["models"]
        assert listed["name"] == "my-llama-3-2-3b-finetuned"
        shown = http.get(f"/api/models/{listed['id']}").json()
        assert shown["training_params"] == {"num_epochs": 3, "batch_size": 4, "learning_rate": 0.01}
        assert shown["metrics"]["perplexity"] > 1

        question = {"model_id": listed["id"], "prompt": "Say 3.", "max_new_tokens": 8, "temperature": 0.0}
        answer = http.post("/api/playground/generate", json=question).raise_for_status().json()
        assert 0 < answer["tokens_generated"] <= 8
        assert isinstance(answer["generated_text"], str)
        assert answer["generation_time_ms"] > 0
        too_long = http.post("/api/playground/generate", json=question | {"max_new_tokens": 5000})
        assert (too_long.status_code, too_long.json()["status_code"]) == (400, 400)

        assert http.delete(f"/api/models/{listed['id']}").json()["status"] == "deleted"
        assert http.get("/api/models").json() == {"models": []}
        assert http.post("/api/playground/generate", json=question).status_code == 404


def test_a_training_that_runs_is_stopped_and_another_may_start(app: App) -> None:
    app.start_worker()
    with listening(app) as url, httpx2.Client(base_url=url, timeout=120) as http, socket_of(url) as socket:
        upload(http)
        body = ASKED | {"num_train_epochs": 100_000}
        started = http.post("/api/start_training", json=body).json()
        while (update := next_of(socket))["current_step"] == 0:
            assert update["status"] in {"idle", "training"}
        assert http.post("/api/start_training", json=body).status_code == 409

        stopped = http.post("/api/stop_training").json()

        assert stopped == {"status": "stopped", "message": "Training stopped successfully"}
        assert until(socket, "stopped")[-1]["job_id"] == started["job_id"]
        assert http.post("/api/stop_training").status_code == 400
        again = http.post("/api/start_training", json=body)
        assert again.status_code == 200
        http.post("/api/stop_training").raise_for_status()


def test_a_training_that_could_learn_nothing_is_refused_before_its_start(app: App) -> None:
    with listening(app) as url, httpx2.Client(base_url=url, timeout=120) as http:
        upload(http)
        # The template alone is longer than a row may be.
        refused = http.post("/api/start_training", json=ASKED | {"max_seq_length": 8})

    assert refused.status_code == 400
    assert "max_length: 8 cuts every answer off all" in refused.text


def test_a_training_that_fails_is_told_with_its_reason(app: App) -> None:
    weights = app.services.catalog.model(MODEL).path / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    app.start_worker()
    with listening(app) as url, httpx2.Client(base_url=url, timeout=120) as http, socket_of(url) as socket:
        upload(http)
        started = http.post("/api/start_training", json=ASKED).raise_for_status().json()

        last = until(socket, "failed")[-1]

        assert last["job_id"] == started["job_id"]
        assert "loss" in last["message"]
        assert http.get("/api/training_status").json() == last


def test_the_web_socket_ends_in_order_when_the_server_does(app: App) -> None:
    with listening(app) as url:
        socket = socket_of(url)
        assert next_of(socket)["status"] == "idle"

    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in {1001, 1012}


def test_a_foreign_page_cannot_follow(app: App) -> None:
    with listening(app) as url:
        with pytest.raises(InvalidStatus) as refused:
            socket_of(url, origin="https://evil.example")
        assert refused.value.response.status_code == 403
        with socket_of(url, origin=url) as socket:
            assert next_of(socket)["status"] == "idle"
