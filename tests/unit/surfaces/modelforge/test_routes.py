"""Every endpoint of ModelForge's document and every error it names, without a worker and without an engine."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from doors import Door, end, insert_job, open_door, report, start
from forge import MODEL, ROWS, add_trained, as_lines
from modelworks.core.nouns import Deployment, EventType, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.store import jobs as queue
from tiny import tiny_llama

SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
ASKED: JsonObject = {"task": "text-generation", "model_name": MODEL, "dataset": "chat"}
TRAINING: JsonObject = {"model": MODEL, "dataset": "chat", "num_train_epochs": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sources") / "llama")


@pytest.fixture
def door(tmp_path: Path, checkpoint: Path) -> Iterator[Door]:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    roots = (checkpoint.parent, allowed)
    with open_door(tmp_path / "home", allow_paths=roots, slots={"cpu": 1, "gpu": 0, "io": 1}) as opened:
        opened.services.catalog.add_model(checkpoint, MODEL)
        yield opened


def upload(door: Door, name: str, content: bytes | None = None) -> Any:
    body = as_lines(ROWS[name]) if content is None else content
    return door.client.post("/api/upload_dataset", files={"file": (f"{name}.jsonl", body)})


def ask(door: Door, **fields: object) -> Any:
    return door.client.post("/api/start_training", json=ASKED | fields)


def refused(reply: Any, status: int) -> str:
    body = reply.json()
    assert (reply.status_code, body["status_code"]) == (status, status), body
    assert {"error", "detail", "status_code"} <= set(body)
    assert isinstance(body["error"], str)
    return f"{body['error']} {body['detail']}"


def run(door: Door) -> Job:
    return start(door.services, insert_job(door.services, "train", TRAINING))


def test_info_answers_in_the_document_s_words_and_in_the_program_s(door: Door) -> None:
    body = door.client.get("/api/info").json()

    assert {key: body[key] for key in ("providers", "strategies", "tasks", "version")} == {
        "providers": ["huggingface", "unsloth"],
        "strategies": ["sft", "qlora", "rlhf", "dpo"],
        "tasks": ["text-generation", "summarization", "extractive-question-answering"],
        "version": "v2",
    }
    assert body["available_strategies"] == body["strategies"]
    assert body["supported_tasks"] == body["tasks"]


def test_uploaded_rows_are_counted_and_listed(door: Door) -> None:
    reply = upload(door, "chat")

    assert (reply.status_code, reply.json()) == (
        200,
        {"status": "uploaded", "filename": "chat.jsonl", "num_examples": 20,
         "validation": {"valid": True, "errors": []}},
    )  # fmt: skip
    (found,) = door.client.get("/api/datasets").json()["datasets"]
    assert (found["filename"], found["num_examples"]) == ("chat.jsonl", 20)
    assert found["size_mb"] > 0
    assert SECONDS.fullmatch(found["uploaded_at"])


def test_a_file_sent_again_replaces_the_older_one(door: Door) -> None:
    upload(door, "chat")
    upload(door, "chat", as_lines(ROWS["chat"][:12]))

    (found,) = door.client.get("/api/datasets").json()["datasets"]
    assert found["num_examples"] == 12


def test_a_file_with_an_unlikely_name_is_found_by_it(door: Door) -> None:
    name = "my rows (1).jsonl"
    reply = door.client.post("/api/upload_dataset", files={"file": (name, as_lines(ROWS["chat"]))})

    assert reply.json()["filename"] == name
    assert ask(door, dataset=name).status_code == 200


def test_a_file_that_holds_no_rows_is_refused_by_its_own_name(door: Door) -> None:
    said = refused(upload(door, "chat", b"this is\nno JSON\n"), 400)

    assert "chat.jsonl" in said
    assert str(door.services.settings.home) not in said
    refused(door.client.post("/api/upload_dataset", json={}), 400)
    refused(door.client.post("/api/upload_dataset", files={"other": (None, b"x")}), 400)
    assert door.client.get("/api/datasets").json() == {"datasets": []}


def test_bad_lines_are_told_and_keep_the_rows_from_being_trained_on(door: Door) -> None:
    bad = b'{"input": ["no text"], "output": "x"}\n' * 25
    body = upload(door, "chat", as_lines(ROWS["chat"]) + bad).json()

    assert (body["num_examples"], body["validation"]["valid"]) == (20, False)
    assert len(body["validation"]["errors"]) == 20
    assert "line 21" in body["validation"]["errors"][0]
    said = refused(ask(door), 400)
    assert "25 rows of chat cannot be read" in said
    assert "line 21" in said


def test_the_document_s_own_request_starts_a_training(door: Door) -> None:
    upload(door, "chat")
    body = ask(door, provider="unsloth", num_train_epochs=3).json()

    assert body["status"] == "started"
    assert re.fullmatch(r"train_\d{6}", body["job_id"])
    assert body["message"] == ("Training started successfully on huggingface: unsloth is not used, it needs a GPU")
    assert body["provider_used"] == "huggingface"
    assert body["warnings"] == [f"rows are cut at 256 tokens, not at 2048: {MODEL} reads no more"]
    job = door.services.job(body["job_id"])
    assert job.spec["name"] == "my-llama-3-2-3b-finetuned"
    assert job.labels == {"task": "text-generation"}
    wanted = {"strategy": "sft", "max_length": 256, "per_device_train_batch_size": 4, "num_train_epochs": 3.0}
    assert wanted.items() <= job.spec.items()


def test_a_second_training_waits_for_nobody(door: Door) -> None:
    upload(door, "chat")
    first = ask(door).json()["job_id"]

    assert first in refused(ask(door), 409)
    assert refused(ask(door, dataset="nowhere"), 409)
    door.services.cancel(first)
    assert ask(door).status_code == 200


def test_only_one_of_many_that_start_at_once_gets_in(door: Door) -> None:
    upload(door, "chat")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(ask(door).status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(found) == [200] + [409] * 7


@pytest.mark.parametrize(
    ("task", "strategy", "rows"),
    [
        ("text-generation", "sft", "chat"),
        ("text-generation", "qlora", "chat"),
        ("text-generation", "dpo", "pairs"),
        ("text-generation", "rlhf", "pairs"),
        ("summarization", "sft", "summaries"),
        ("extractive-question-answering", "qlora", "squad"),
    ],
)
def test_rows_that_fit_the_task_are_taken(door: Door, task: str, strategy: str, rows: str) -> None:
    upload(door, rows)
    reply = ask(door, task=task, strategy=strategy, dataset=rows)

    assert reply.status_code == 200, reply.json()
    job = door.services.job(reply.json()["job_id"])
    assert (job.labels["task"], job.spec["strategy"]) == (task, strategy)


@pytest.mark.parametrize(
    ("task", "strategy", "rows", "needs"),
    [
        ("text-generation", "sft", "pairs", "input and output"),
        ("text-generation", "sft", "squad", "input and output"),
        ("text-generation", "dpo", "chat", "chosen"),
        ("text-generation", "rlhf", "chat", "reward_model"),
        ("summarization", "sft", "squad", "summary"),
        ("summarization", "dpo", "pairs", "text-generation only"),
        ("extractive-question-answering", "sft", "chat", "question"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_what_is_needed(
    door: Door, task: str, strategy: str, rows: str, needs: str
) -> None:
    upload(door, rows)
    said = refused(ask(door, task=task, strategy=strategy, dataset=rows), 400)

    assert needs in said
    assert strategy in said


def test_inputs_and_outputs_may_be_learned_as_summaries(door: Door) -> None:
    upload(door, "chat")

    assert "columns document and summary" in ask(door, task="summarization").json()["warnings"][0]


def test_what_cannot_be_done_as_asked_is_told(door: Door) -> None:
    upload(door, "chat")
    told = ask(
        door, use_4bit=True, optim="paged_adamw_32bit", packing=True, fp16=True, eval_split=0.2, device="mps",
        compute_specs="low_end", lr_scheduler_type="polynomial", group_by_length=True, dpo_beta=1,
    ).json()["warnings"]  # fmt: skip

    fields = [sentence.partition(":")[0] for sentence in told]
    assert sorted(fields[:-1]) == sorted(
        ["use_4bit", "optim", "packing", "fp16", "eval_split", "device", "compute_specs", "lr_scheduler_type",
         "dpo_beta"]
    )  # fmt: skip
    assert "only the strategy qlora" in next(sentence for sentence in told if sentence.startswith("use_4bit"))


@pytest.mark.parametrize(
    "fields",
    [{"task": "translation"}, {"model_name": ""}, {"strategy": "ppo"}, {"provider": "axolotl"}, {"lora_r": 300},
     {"learning_rate": 2}, {"num_train_epochs": 0}, {"dataset": None}],
)  # fmt: skip
def test_a_field_that_cannot_be_meant_is_named(door: Door, fields: dict[str, object]) -> None:
    assert next(iter(fields)) in refused(ask(door, **fields), 400)


def test_a_model_or_dataset_that_is_not_here_is_not_found(door: Door) -> None:
    assert "nowhere" in refused(ask(door, dataset="nowhere"), 404)
    upload(door, "chat")
    assert "org/none" in refused(ask(door, model_name="org/none"), 404)


def test_a_path_is_imported_once_and_only_from_allowed_folders(door: Door, tmp_path: Path) -> None:
    inside, outside = tmp_path / "allowed" / "rows.jsonl", tmp_path / "rows.jsonl"
    for path in (inside, outside):
        path.write_bytes(as_lines(ROWS["chat"]))
    assert "--allow-path" in refused(ask(door, dataset=str(outside)), 403)
    refused(ask(door, dataset=str(inside.with_name("none.jsonl"))), 404)

    for _ in range(2):
        door.services.cancel(ask(door, dataset=str(inside)).json()["job_id"])
    (found,) = door.client.get("/api/datasets").json()["datasets"]
    assert re.fullmatch(r"rows-[0-9a-f]{12}.jsonl", found["filename"])
    inside.write_bytes(as_lines(ROWS["chat"][:15]))
    ask(door, dataset=str(inside))
    assert len(door.client.get("/api/datasets").json()["datasets"]) == 2


IDLE = {
    "status": "idle", "progress": 0.0, "current_epoch": 0, "total_epochs": 0, "current_step": 0, "total_steps": 0,
    "loss": None, "learning_rate": 0.0, "job_id": None, "message": "",
}  # fmt: skip


def test_nothing_trained_is_idle(door: Door) -> None:
    assert door.client.get("/api/training_status").json() == IDLE
    assert "nothing to stop" in refused(door.client.post("/api/stop_training"), 400)


def test_the_status_of_a_training_is_the_document_s_own(door: Door) -> None:
    job = run(door)
    report(door.services, job, [{"step": 500, "loss": 0.234, "learning_rate": 0.0002, "epoch": 1.364}])
    told: JsonObject = {"done": 500, "total": 1100, "unit": "steps", "stage": "training", "epoch": 1.364}
    report(door.services, job, [told], EventType.PROGRESS)

    assert door.client.get("/api/training_status").json() == {
        "status": "training", "progress": 45.5, "current_epoch": 2, "total_epochs": 3, "current_step": 500,
        "total_steps": 1100, "loss": 0.234, "learning_rate": 0.0002, "job_id": job.id, "message": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "word"),
    [(JobState.SUCCEEDED, "completed"), (JobState.FAILED, "failed"), (JobState.CANCELLED, "stopped")],
)
def test_an_ended_training_says_how_it_ended(door: Door, state: JobState, word: str) -> None:
    end(door.services, run(door), state)

    assert door.client.get("/api/training_status").json()["status"] == word
    refused(door.client.post("/api/stop_training"), 400)


def test_a_training_that_waits_is_stopped_at_once(door: Door) -> None:
    job = insert_job(door.services, "train", TRAINING)
    assert door.client.get("/api/training_status").json()["status"] == "training"

    reply = door.client.post("/api/stop_training")

    assert reply.json() == {"status": "stopped", "message": "Training stopped successfully"}
    assert door.services.job(job.id).state is JobState.CANCELLED


def test_a_training_that_ends_while_it_is_stopped_has_ended(door: Door) -> None:
    job = run(door)
    report(door.services, job, [{"step": 1}])

    def end_when_asked() -> None:
        while not door.services.wait(job.id, 0.05).cancel_requested:
            pass
        end(door.services, job)

    ending = threading.Thread(target=end_when_asked)
    ending.start()

    reply = door.client.post("/api/stop_training")

    ending.join()
    assert reply.json() == {"status": "completed", "message": "Training completed"}


def test_trained_models_are_listed_and_shown_by_number_name_and_id(door: Door, tmp_path: Path) -> None:
    first = add_trained(door.services, tmp_path / "a", "my-llama-3-2-3b-finetuned", {"task": "summarization"})
    second = add_trained(door.services, tmp_path / "b", "org/second")

    listed = door.client.get("/api/models").json()["models"]

    assert [(model["id"], model["name"]) for model in listed] == [
        (first.number, "my-llama-3-2-3b-finetuned"),
        (second.number, "org/second"),
    ]
    assert set(listed[0]) == {"id", "name", "base_model", "task", "created_at", "size_mb"}
    assert (listed[0]["base_model"], listed[0]["task"], listed[1]["task"]) == (
        MODEL,
        "summarization",
        "text-generation",
    )
    assert SECONDS.fullmatch(listed[0]["created_at"])
    assert listed[0]["size_mb"] >= 1
    assert door.client.get("/api/models/").json()["models"] == listed
    shown = door.client.get(f"/api/models/{first.number}").json()
    assert shown == listed[0] | {
        "provider": "huggingface",
        "strategy": "sft",
        "training_params": {"num_epochs": 3, "batch_size": 4, "learning_rate": 0.0002},
        "metrics": {"final_loss": 0.234, "perplexity": pytest.approx(1.263, abs=1e-3)},
    }
    assert door.client.get(f"/api/models/{first.name}").json() == shown
    assert door.client.get(f"/api/models/{first.id}").json() == shown
    assert door.client.get("/api/models/org/second").json()["id"] == second.number


@pytest.mark.parametrize("model_id", ["99", "9" * 40, "nobody", MODEL, "1"])
def test_what_was_not_trained_here_is_no_model_of_theirs(door: Door, model_id: str) -> None:
    assert door.services.catalog.model(MODEL).number == 1
    assert "Model not found" in refused(door.client.get(f"/api/models/{model_id}"), 404)
    refused(door.client.delete(f"/api/models/{model_id}"), 404)
    refused(door.client.post("/api/playground/generate", json={"model_id": model_id, "prompt": "?"}), 404)


def test_a_deleted_model_is_gone_and_its_number_is_not_given_again(door: Door, tmp_path: Path) -> None:
    made = add_trained(door.services, tmp_path / "a", "mine")
    reply = door.client.delete(f"/api/models/{made.number}")

    assert reply.json() == {"status": "deleted", "message": "Model deleted successfully"}
    refused(door.client.delete(f"/api/models/{made.number}"), 404)
    assert not made.path.exists()
    assert add_trained(door.services, tmp_path / "b", "mine").number > made.number


def test_a_model_that_a_job_uses_is_not_deleted(door: Door, tmp_path: Path) -> None:
    made = add_trained(door.services, tmp_path / "a", "mine")
    inputs: JsonObject = {"mine": {"id": made.id}}
    new = queue.NewJob(kind="merge", spec={}, inputs=inputs, needs={"cpu": 1})
    queue.insert_job(door.services.database, new)

    assert "is used by a job" in refused(door.client.delete(f"/api/models/{made.number}"), 409)


def test_a_model_that_answers_somebody_is_not_deleted(door: Door, tmp_path: Path) -> None:
    made = add_trained(door.services, tmp_path / "a", "mine")
    deployment = Deployment(
        id="d", model=made.base, model_name=MODEL, engine="native", device="cpu", created_at=made.created_at
    )
    busy = SimpleNamespace(deployment=deployment, adapters=("mine",), outstanding=2)
    door.services.running_gateway = cast("Any", SimpleNamespace(deployments=lambda: (busy,)))

    assert "mine is being served: 2 answers" in refused(door.client.delete(f"/api/models/{made.number}"), 409)
    assert made.path.exists()


@pytest.mark.parametrize("fields", [{"prompt": ""}, {"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}])
def test_a_question_that_cannot_be_meant_is_refused(door: Door, fields: dict[str, object]) -> None:
    body = {"model_id": 1, "prompt": "?"} | fields

    assert next(iter(fields)) in refused(door.client.post("/api/playground/generate", json=body), 400)


def test_the_web_socket_tells_the_status_at_once(door: Door) -> None:
    with door.client.websocket_connect("ws://127.0.0.1:8000/ws/training") as socket:
        assert socket.receive_json() == IDLE
        job = run(door)
        report(door.services, job, [{"step": 1, "loss": 0.5}])
        heard = socket.receive_json()
        while heard["loss"] is None:
            heard = socket.receive_json()
        assert (heard["status"], heard["loss"]) == ("training", 0.5)
