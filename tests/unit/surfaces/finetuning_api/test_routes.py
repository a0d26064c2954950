from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from doors import Door, end, insert_job, open_door, report, start
from modelworks.core.nouns import Dataset, EventType, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.data.spec import ImportSpec
from tiny import tiny_llama

ROWS = [{"instruction": f"Add {number} and 2.", "input": "", "output": f"It is {number + 2}."} for number in range(24)]
ROWS_TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
STEP: JsonObject = {"step": 3, "epoch": 0.25, "step_time": 1.5, "learning_rate": 2e-4, "loss": 0.5, "grad_norm": 1.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny_llama(folder / "tiny")
    (folder / "rows.jsonl").write_text(ROWS_TEXT)
    return folder


@pytest.fixture
def door(tmp_path: Path, source: Path) -> Iterator[Door]:
    with open_door(tmp_path / "home", allow_paths=(source,)) as found:
        found.services.catalog.add_model(source / "tiny", "org/tiny")
        found.services.catalog.upload(source / "rows.jsonl", ImportSpec(name="alpaca"))
        yield found


def ask(door: Door, path: str = "/finetune", **body: object) -> JsonObject:
    answer = door.client.post(path, json={"dataset_name": "alpaca", "model_name": "org/tiny"} | body)
    assert answer.status_code == 200, answer.text
    found: JsonObject = answer.json()
    return found


def job_of(door: Door, answer: JsonObject) -> Job:
    return door.services.job(str(answer["job_id"]))


@pytest.mark.parametrize("path", ["/finetune", "/finetune-legacy"])
def test_a_training_is_queued_as_documented(door: Door, path: str) -> None:
    answer = ask(door, path, max_seq_length=128)

    assert answer == {
        "job_id": answer["job_id"], "status": "queued", "notes": [], "dashboard_url": "http://localhost:5000",
        "message": "Finetuning job has been queued and will start shortly",
    }  # fmt: skip
    spec = job_of(door, answer).spec
    assert (spec["max_steps"], spec["lora_alpha"], spec["output_dir"]) == (60, 16, "./results")


def test_what_is_done_otherwise_than_asked_is_told(door: Door) -> None:
    answer = ask(door, use_unsloth=True)

    # 256: what the tiny model reads
    assert answer["notes"] == [
        "rows are cut at 256 tokens, not at 2048: org/tiny reads no more", "use_unsloth: not known, ignored"
    ]  # fmt: skip
    assert job_of(door, answer).spec["max_length"] == 256


def test_a_second_one_is_queued_too(door: Door) -> None:
    assert ask(door)["job_id"] != ask(door)["job_id"]


def test_a_dataset_may_be_a_file_under_an_allowed_path(door: Door, source: Path) -> None:
    assert ask(door, dataset_name=str(source / "rows.jsonl"))["status"] == "queued"
    assert door.client.post("/finetune", json={"dataset_name": "/etc/passwd"}).status_code in {403, 404}


def test_a_model_that_is_not_here_is_told_with_how_to_name_another(door: Door) -> None:
    for path, body in (("/finetune", {"dataset_name": "alpaca"}), ("/finetune-simple", None)):
        answer = door.client.post(path, json=body)

        assert answer.status_code == 404
        assert "unsloth/llama-3-8b-bnb-4bit" in answer.json()["detail"]
        assert "model_name" in answer.json()["detail"]


def test_the_simple_form_trains_the_default_model_on_alpaca(door: Door) -> None:
    door.services.catalog.alias("org/tiny", "unsloth/llama-3-8b-bnb-4bit")

    answer = door.client.post("/finetune-simple").json()

    assert answer["message"] == "Simple finetuning job started with default parameters"
    assert job_of(door, answer).spec["dataset"] == "alpaca"


def test_a_file_can_be_sent_along(door: Door) -> None:
    text = "instruction,input,output\nSay hi,,hi\nSay ho,,ho\nSay ha,please,ha\nSay hu,,hu\n"
    fields = {"model_name": "org/tiny", "max_steps": "7", "output_dir": "results/form"}

    for _ in range(2):
        sent = door.client.post("/finetune", data=fields, files={"data_file": ("My rows.csv", text)})
        answer = sent.json()

        assert sent.status_code == 200, sent.text
        assert answer["message"] == "Finetuning job queued with 4 training samples from CSV file"
        assert answer["dataset_info"] == {
            "total_rows": 4, "columns": ["instruction", "input", "output"], "null_counts": {"input": 3},
            "sample_data": [
                {"instruction": "Say hi", "input": "", "output": "hi"},
                {"instruction": "Say ho", "input": "", "output": "ho"},
                {"instruction": "Say ha", "input": "please", "output": "ha"},
            ],
            "file_type": "CSV",
        }  # fmt: skip
        assert answer["config"]["max_steps"] == 7
        assert answer["config"]["dataset_name"].startswith("My-rows-")
    # The same file twice is one dataset.
    assert len(door.services.catalog.on_shelf("datasets")) == 2


def test_a_file_that_nothing_is_trained_on_is_not_kept(door: Door) -> None:
    before = door.services.catalog.on_shelf("datasets")

    def send(name: str, text: str, **fields: str) -> int:
        data = {"model_name": "org/tiny"} | fields
        return door.client.post("/finetune", data=data, files={"data_file": (name, text)}).status_code

    assert send("rows.jsonl", ROWS_TEXT, model_name="nobody") == 404
    assert send("rows.jsonl", ROWS_TEXT, output_dir="/etc") == 403
    assert send("rows.jsonl", ROWS_TEXT, lora_r="0") == 400
    assert send("rows.txt", ROWS_TEXT) == 400
    assert send("rows.csv", "question,output\na,b\n") == 400
    assert door.services.catalog.on_shelf("datasets") == before


def test_numbers_that_are_none_and_halves_of_characters_do_not_break_the_answer(door: Door) -> None:
    odd = '[{"instruction": "a", "output": "b", "score": NaN, "big": 99999999999999999999, "half": "\\ud800"},'
    odd += '{"instruction": "c", "output": "d"}]'

    sent = door.client.post("/finetune", data={"model_name": "org/tiny"}, files={"data_file": ("odd.json", odd)})

    assert sent.status_code == 200, sent.text
    assert sent.json()["dataset_info"]["sample_data"][0]["score"] is None


def test_a_running_job_tells_its_progress_and_the_end_of_its_log(door: Door) -> None:
    job = job_of(door, ask(door))
    waiting = door.client.get(f"/jobs/{job.id}").json()
    assert waiting == {"job_id": job.id, "status": "queued", "progress": None, "logs": [], "error": None}

    start(door.services, job)
    report(door.services, job, [{"message": "begins"}], EventType.LOG)
    report(door.services, job, [STEP | {"step": step} for step in range(1, 13)])
    facts: JsonObject = {
        "done": 12,
        "total": 60,
        "unit": "steps",
        "stage": "training",
        "epoch": 1.0,
        "eta_seconds": 9.5,
    }
    report(door.services, job, [facts], EventType.PROGRESS)
    told = door.client.get(f"/jobs/{job.id}").json()

    assert told["status"] == "running"
    assert told["progress"] == {
        "percent": 20.0, "step": 12, "total_steps": 60, "epoch": 1.0, "loss": 0.5, "eta_seconds": 9.5
    }  # fmt: skip
    assert [entry["step"] for entry in told["logs"]] == list(range(3, 13))
    every = door.client.get(f"/logs/{job.id}").json()
    assert every["job_id"] == job.id
    assert len(every["logs"]) == 13


def test_trainings_of_any_origin_are_listed_newest_first(door: Door) -> None:
    first = job_of(door, ask(door))
    own = door.client.post(
        "/modelworks/train", json={"model": "org/tiny", "dataset": "alpaca", "max_length": 64}
    ).json()
    insert_job(door.services)
    end(door.services, start(door.services, first))

    listed = door.client.get("/jobs").json()

    assert listed["total"] == 2
    assert [entry["id"] for entry in listed["jobs"]] == [own["id"], first.id]
    newest, oldest = listed["jobs"]
    assert list(newest) == ["id", "status", "config", "created_at", "logs"]
    assert (oldest["status"], oldest["message"]) == ("completed", "Training completed successfully")
    assert {"started_at", "completed_at"} < set(oldest)
    assert newest["config"]["max_seq_length"] == 64
    assert "Z" not in newest["created_at"]


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_an_ended_job_cannot_be_cancelled(door: Door, state: JobState) -> None:
    job = start(door.services, job_of(door, ask(door)))
    end(door.services, job, state)

    answer = door.client.delete(f"/jobs/{job.id}")

    assert answer.status_code == 400
    assert answer.json()["detail"] == "Cannot cancel completed or failed job"


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_is_gone(door: Door) -> None:
    job = job_of(door, ask(door))
    assert door.client.delete(f"/jobs/{job.id}").json() == {
        "job_id": job.id, "status": "cancelled", "message": "Job has been cancelled"
    }  # fmt: skip

    running = start(door.services, job_of(door, ask(door)))
    answers: list[JsonObject] = []
    asking = threading.Thread(target=lambda: answers.append(door.client.delete(f"/jobs/{running.id}").json()))
    asking.start()
    while not door.services.job(running.id).cancel_requested:
        pass
    assert answers == []
    end(door.services, running, JobState.CANCELLED)
    asking.join(20)

    assert answers[0]["status"] == "cancelled"


def test_what_is_no_training_is_not_found(door: Door) -> None:
    for path in ("/jobs/nobody", "/logs/nobody", f"/jobs/{insert_job(door.services).id}"):
        answer = door.client.get(path)

        assert answer.status_code == 404
        assert answer.json()["detail"] == answer.json()["error"] == "Job not found"


def test_the_dashboard_is_where_it_really_is(door: Door) -> None:
    assert door.client.get("/dashboard").json() == {
        "dashboard_url": "http://localhost:5000", "status": "available",
        "description": "Real-time training monitoring dashboard",
    }  # fmt: skip


def test_the_received_file_is_gone_and_what_came_of_it_is_a_dataset(door: Door) -> None:
    door.client.post("/finetune", data={"model_name": "org/tiny"}, files={"data_file": ("rows.jsonl", ROWS_TEXT)})

    assert list((door.services.settings.home / "staging").iterdir()) == []
    newest = door.services.catalog.on_shelf("datasets")[0]
    assert isinstance(newest, Dataset)
    assert newest.format == "alpaca"
