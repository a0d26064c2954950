"""The whole life in OpenAI's client: files are sent, trained on, paused, resumed, and the result answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from doors import ServerProcess, serving
from modelworks.app.wiring import open_app
from modelworks.client import Client
from modelworks.core.config import Settings
from modelworks.core.states import JobState
from tiny import tiny_llama

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam
    from openai.types.fine_tuning import FineTuningJob

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_finetune.py"
TURNS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say 3"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("life")
    tiny_llama(folder / "tiny", max_position_embeddings=1024)
    settings = {"home": folder / "home", "hub_offline": True, "allow_paths": (folder,)}
    app = open_app(Settings.model_validate(settings))
    app.services.catalog.add_model(folder / "tiny", "org/tiny")
    app.close()
    with serving(folder / "home", OMP_NUM_THREADS="1") as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def own(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def send(client: openai.OpenAI, *rows: dict[str, Any]) -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def turns(n: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "1 " * n}]}


def pair(n: int) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": f"Say {n}"}]},
        "preferred_output": [{"role": "assistant", "content": "1 " * n}],
        "non_preferred_output": [{"role": "assistant", "content": "2 " * n}],
    }


def until(
    client: openai.OpenAI, job: FineTuningJob, there: Callable[[FineTuningJob], bool], seconds: float = 120
) -> FineTuningJob:
    deadline = time.monotonic() + seconds
    while not there(job):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def has_ended(job: FineTuningJob) -> bool:
    return job.status in ("succeeded", "failed", "cancelled")


def steps_told(client: openai.OpenAI, job: FineTuningJob) -> list[int]:
    told = client.fine_tuning.jobs.list_events(job.id, limit=1000)
    return [event.data["step"] for event in told if event.type == "metrics" and isinstance(event.data, dict)][::-1]


def test_a_model_is_trained_measured_used_merged_and_deleted(client: openai.OpenAI, own: Client) -> None:
    rows, held_out = send(client, *map(turns, range(1, 13))), send(client, *map(turns, range(13, 17)))

    job = client.fine_tuning.jobs.create(
        model="org/tiny",
        training_file=rows,
        validation_file=held_out,
        suffix="counter",
        hyperparameters={"n_epochs": 2},
    )
    ended = until(client, job, has_ended)

    assert (ended.status, ended.error) == ("succeeded", None)
    name = ended.fine_tuned_model
    assert name == f"ft:org/tiny:modelworks:counter:{job.id[-8:]}"
    # twelve rows, four a step, two epochs
    assert steps_told(client, ended) == [1, 2, 3, 4, 5, 6]
    assert ended.trained_tokens
    (results,) = ended.result_files
    table = client.files.content(results).text.splitlines()
    assert len(table) == 7
    assert float(table[-1].split(",")[3]) > 0
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == name
    assert checkpoint.metrics.full_valid_loss
    assert client.models.retrieve(name).id == name
    answer = client.chat.completions.create(model=name, messages=TURNS, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4

    merged = own.wait(own.submit("merge", {"method": "average", "base": "org/tiny", "models": [name]}).id)
    assert (merged.state, merged.error) == (JobState.SUCCEEDED, None)
    tree = json.dumps(own.lineage(name))
    assert rows in tree
    assert held_out in tree
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        client.chat.completions.create(model=name, messages=TURNS)
    assert gone.value.code == "model_not_found"


def test_a_running_training_is_paused_and_goes_on_where_it_was(client: openai.OpenAI) -> None:
    rows = send(client, *map(turns, range(1, 41)))
    job = client.fine_tuning.jobs.create(
        model="org/tiny", training_file=rows, extra_body={"max_steps": 300, "save_steps": 100}
    )
    until(client, job, lambda job: job.status == "running" and len(steps_told(client, job)) > 30)

    paused = client.fine_tuning.jobs.pause(job.id)

    assert str(paused.status) == "paused"  # a word that its types do not know
    reached = steps_told(client, job)[-1]
    assert 30 < reached < 300
    # The slot is free: another job runs to its end meanwhile.
    other = client.fine_tuning.jobs.create(model="org/tiny", training_file=rows, extra_body={"max_steps": 2})
    assert until(client, other, has_ended).status == "succeeded"
    assert str(client.fine_tuning.jobs.retrieve(job.id).status) == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    assert until(client, job, has_ended).status == "succeeded"
    steps = steps_told(client, job)
    assert steps == list(range(1, 301))
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=1000)]
    # A checkpoint was written first: nothing is learned twice, though one is due only every hundred steps.
    assert [message for message in messages if message.startswith("resuming")] == [f"resuming from step {reached}"]


def test_a_running_training_is_cancelled(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model="org/tiny", training_file=send(client, turns(3), turns(4)), extra_body={"max_steps": 5000}
    )
    until(client, job, lambda job: job.status == "running" and bool(steps_told(client, job)))

    cancelled = client.fine_tuning.jobs.cancel(job.id)

    assert (cancelled.status, cancelled.fine_tuned_model, cancelled.result_files) == ("cancelled", None, [])


def test_preferences_are_learned(client: openai.OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model="org/tiny",
        training_file=send(client, *map(pair, range(1, 9))),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}},
    )

    ended = until(client, job, has_ended)

    assert (ended.status, ended.error) == ("succeeded", None)
    assert ended.fine_tuned_model == f"ft:org/tiny:modelworks::{job.id[-8:]}"
    answer = client.completions.create(model=ended.fine_tuned_model, prompt="Say", max_tokens=2)
    assert answer.choices[0].finish_reason == "length"


def test_the_example_runs_as_it_is(server: ServerProcess) -> None:
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"}

    ran = subprocess.run(
        [sys.executable, EXAMPLE, "org/tiny"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("ft:org/tiny:modelworks:tickets:")
