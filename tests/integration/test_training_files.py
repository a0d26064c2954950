"""training_logs.jsonl and lora_model beside a real training, through `kill -9` of the server and of the run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx2
import pytest

from doors import serving
from modelworks.client import Client
from modelworks.core.nouns import JsonObject
from modelworks.core.states import JobState
from tiny import tiny_llama

STEPS = 60


@pytest.mark.timeout(300)
def test_the_log_has_every_step_once_whoever_is_killed_and_the_adapter_is_found(tmp_path: Path) -> None:
    home = tmp_path / "home"
    tiny_llama(tmp_path / "tiny")
    rows = [
        json.dumps({"instruction": f"Count to {number}.", "output": "1 " * (number % 9 + 1)}) for number in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    asked: dict[str, object] = {"model_name": "org/tiny", "dataset_name": "rows", "max_steps": STEPS, "save_steps": 10}

    with serving(home, MODELWORKS_ALLOW_PATHS=str(tmp_path)) as server, Client(server.wait_until_ready()) as client:
        client.add_model(tmp_path / "tiny", "org/tiny")
        client.upload(tmp_path / "rows.jsonl", "rows")
        job_id = ask(client, asked)
        wait_for_step(client, job_id, 3)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()

    with serving(home) as server, Client(server.wait_until_ready()) as client:
        wait_for_step(client, job_id, 15)
        run = json.loads((home / "jobs" / job_id / "process.json").read_text())["pid"]
        os.kill(run, signal.SIGKILL)
        told = list(client.events(job_id))

        ended = client.job(job_id)
        logs = lines(home / "training_logs.jsonl")
        assert (ended.state, ended.runs) == (JobState.SUCCEEDED, 2)
        # Every event once, in order; steps that the second run did again are told again.
        assert [line["seq"] for line in logs] == [event.seq for event in told if event.type in {"metric", "log"}]
        assert {line["step"] for line in logs if line["type"] == "training_step"} == set(range(1, STEPS + 1))
        assert {line["job_id"] for line in logs} == {job_id}
        assert all(float(str(line["step_time"])) > 0 for line in logs if line["type"] == "training_step")

        adapter = client.model(str(ended.spec["name"]))
        assert (home / "lora_model").resolve() == adapter.path
        assert (home / "results" / job_id / "adapter_config.json").exists()


def ask(client: Client, body: dict[str, object]) -> str:
    answer = httpx2.post(f"{client.url}/finetune", json=body, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["job_id"])


def wait_for_step(client: Client, job_id: str, step: int) -> None:
    for event in client.events(job_id):
        if event.type == "metric" and int(str(event.body["step"])) >= step:
            return
    raise AssertionError(f"the job ended first: {client.job(job_id)}\n{client.log(job_id)}")


def lines(path: Path) -> list[JsonObject]:
    return [json.loads(line) for line in path.read_text().splitlines()]
