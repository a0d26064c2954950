"""OpenAI's files and fine-tuning jobs as the official client sees them, on a server whose jobs wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from doors import listening, report, start
from modelworks.app.services import Services
from modelworks.app.wiring import App, open_app
from modelworks.core import clock
from modelworks.core.config import Settings
from modelworks.core.nouns import EventType, Failure
from modelworks.core.states import JobState
from modelworks.store import jobs as queue
from tiny import tiny_adapter, tiny_llama

ROWS = [
    {"messages": [{"role": "user", "content": f"Ask {n}"}, {"role": "assistant", "content": f"Say {n}"}]}
    for n in range(8)
]
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"Ask {n}"}]},
        "preferred_output": [{"role": "assistant", "content": f"Good {n}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"Bad {n}"}],
    }
    for n in range(8)
]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_llama(folder / "tiny")
    tiny_adapter(folder / "left", folder / "tiny")
    return folder


@pytest.fixture
def app(tmp_path: Path, checkpoints: Path) -> Iterator[App]:
    settings = {"home": tmp_path / "home", "hub_offline": True, "allow_paths": (checkpoints,)}
    opened = open_app(Settings.model_validate(settings))
    opened.services.catalog.add_model(checkpoints / "tiny", "org/tiny")
    yield opened
    opened.close()


@pytest.fixture
def services(app: App) -> Services:
    return app.services


@pytest.fixture
def client(app: App) -> Iterator[openai.OpenAI]:
    with (
        listening(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def send(client: openai.OpenAI, rows: list[dict[str, Any]] = ROWS, name: str = "rows.jsonl") -> str:
    return client.files.create(file=(name, lines(rows)), purpose="fine-tune").id


def train(client: openai.OpenAI, **fields: Any) -> openai.types.fine_tuning.FineTuningJob:
    asked = {"model": "org/tiny", "training_file": fields.pop("training_file", None) or send(client), **fields}
    return client.fine_tuning.jobs.create(**asked)


def test_a_file_is_kept_as_it_was_sent_until_it_is_deleted(client: openai.OpenAI) -> None:
    sent = client.files.create(file=("my rows.jsonl", lines(ROWS)), purpose="fine-tune")

    assert (sent.object, sent.filename, sent.purpose, sent.bytes) == (
        "file",
        "my rows.jsonl",
        "fine-tune",
        len(lines(ROWS)),
    )
    assert client.files.wait_for_processing(sent.id).status == "processed"
    assert client.files.retrieve(sent.id) == sent
    content = client.files.content(sent.id)
    assert content.read() == lines(ROWS)
    assert "my%20rows.jsonl" in content.response.headers["content-disposition"]
    deleted = client.files.delete(sent.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (sent.id, "file", True)
    with pytest.raises(openai.NotFoundError) as gone:
        client.files.content(sent.id)
    assert (gone.value.code, gone.value.param, gone.value.type) == ("not_found", "id", "invalid_request_error")


def test_a_file_nothing_can_be_learned_from_says_why_and_trains_nobody(client: openai.OpenAI) -> None:
    broken = client.files.create(file=("x.jsonl", b'{"messages": 3}\nnot json\n'), purpose="fine-tune")

    assert broken.status == "error"
    assert broken.status_details is not None
    assert broken.status_details.startswith("2 of 2 rows of x.jsonl cannot be read as messages, first: line 1")
    with pytest.raises(openai.BadRequestError, match="cannot be learned") as refused:
        train(client, training_file=broken.id)
    assert refused.value.param == "training_file"


def test_a_form_with_other_purposes_or_fields_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=b"x", purpose="batch")
    with pytest.raises(openai.BadRequestError) as too_soon:
        client.files.create(file=b"x", purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 5})
    with pytest.raises(openai.BadRequestError, match=r"porpoise: unknown key \(did you mean purpose") as unknown:
        client.files.create(file=b"x", purpose="fine-tune", extra_body={"porpoise": "x"})

    assert [each.value.param for each in (refused, too_soon, unknown)] == [
        "purpose", "expires_after[seconds]", "porpoise",
    ]  # fmt: skip


def test_a_file_expires_when_it_was_asked_to(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = send(client)
    sent = client.files.create(
        file=("x.jsonl", lines(ROWS)), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert sent.expires_at == sent.created_at + 3600

    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(hours=2))

    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(sent.id)
    assert [file.id for file in client.files.list()] == [kept]


def test_files_are_paged_in_both_orders_and_by_purpose(client: openai.OpenAI) -> None:
    sent = [send(client, ROWS[: n + 2]) for n in range(5)]

    first = client.files.list(limit=5)

    assert first.has_more is False
    assert [file.id for file in client.files.list(limit=2)] == sent[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == sent
    assert [file.id for file in client.files.list(purpose="fine-tune-results")] == []
    with pytest.raises(openai.NotFoundError) as unknown:
        client.files.list(after="file-nobody")
    assert unknown.value.param == "after"


def test_a_job_resolves_what_was_left_to_us(client: openai.OpenAI, services: Services) -> None:
    file_id = send(client)
    job = train(
        client,
        training_file=file_id,
        suffix="my bot!",
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 12}}},
        extra_body={"lora_r": 4, "dtype": "fp32"},
    )

    assert (job.object, job.status, job.model, job.training_file) == (
        "fine_tuning.job", "queued", "org/tiny", file_id,
    )  # fmt: skip
    assert (job.seed, job.metadata, job.fine_tuned_model, job.error) == (42, {"team": "a"}, None, None)
    found = job.hyperparameters
    assert (found.n_epochs, found.batch_size, found.learning_rate_multiplier) == (3, 12, 1)
    assert job.method is not None
    assert job.method.type == "supervised"
    spec = services.job(job.id).spec
    assert spec["name"] == f"ft:org/tiny:modelworks:my-bot:{job.id[-8:]}"
    # 12 rows a step: six at once, twice
    assert (spec["per_device_train_batch_size"], spec["gradient_accumulation_steps"]) == (6, 2)
    # as long as the model reads, which is less than a training's own default
    assert (spec["lora_r"], spec["dtype"], spec["max_length"], spec["dataset"]) == (4, "fp32", 256, file_id)
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_hyperparameters_are_taken_from_their_old_place_too(client: openai.OpenAI, services: Services) -> None:
    job = train(client, seed=7, hyperparameters={"n_epochs": 1, "learning_rate_multiplier": 0.5})

    spec = services.job(job.id).spec
    assert (spec["num_train_epochs"], spec["learning_rate"], spec["seed"]) == (1, 1e-4, 7)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.learning_rate_multiplier) == (1, 0.5)


def test_a_file_becomes_one_dataset_that_names_it_as_its_source(client: openai.OpenAI, services: Services) -> None:
    rows, held_out = send(client), send(client, ROWS[:3], "held.jsonl")

    for _ in range(2):
        train(client, training_file=rows)
    both = train(client, training_file=rows, validation_file=held_out)

    assert len(services.catalog.on_shelf("datasets")) == 2
    assert [parent.name for parent in services.catalog.lineage(rows).parents] == [rows]
    dataset = services.catalog.dataset(f"{rows}.{held_out}")
    assert (dataset.train_rows, dataset.validation_rows) == (8, 3)
    assert [parent.role for parent in dataset.parents] == ["source", "validation"]
    assert both.validation_file == held_out


def test_preferences_are_learned_by_dpo(client: openai.OpenAI, services: Services) -> None:
    pairs = send(client, PAIRS)
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 2}}}

    job = train(client, training_file=pairs, method=method)

    spec = services.job(job.id).spec
    assert (spec["strategy"], spec["params"], spec["num_train_epochs"]) == ("dpo", {"beta": 0.3}, 2)
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.3
    auto = train(client, training_file=pairs, method={"type": "dpo"}).method
    assert auto is not None
    assert auto.dpo is not None
    assert auto.dpo.hyperparameters is not None
    assert auto.dpo.hyperparameters.beta == 0.1
    with pytest.raises(openai.BadRequestError, match="dpo learns from preferences"):
        train(client, method=method)


def test_reinforcement_grades_answers_by_the_rows_other_columns(client: openai.OpenAI, services: Services) -> None:
    asked = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": str(n + 1)} for n in range(8)]
    grader = {
        "type": "string_check", "name": "sum", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
        "operation": "eq",
    }  # fmt: skip
    hyperparameters = {"batch_size": 3, "compute_multiplier": 2, "eval_samples": 5, "learning_rate_multiplier": 2}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}

    sent = send(client, asked)
    job = train(client, training_file=sent, method=method)

    spec = services.job(job.id).spec
    assert (spec["strategy"], spec["learning_rate"], spec["dataset"]) == ("grpo", 2e-5, f"{sent}.prompts")
    assert spec["params"] == {"num_generations": 8, "eval_samples": 5, "grader": grader}
    # three prompts a step, each with eight answers
    assert (spec["per_device_train_batch_size"], spec["gradient_accumulation_steps"]) == (8, 3)
    assert services.catalog.dataset(f"{sent}.prompts").format == "prompt"
    told = job.to_dict()["method"]
    assert isinstance(told, dict)
    assert (told["type"], told["reinforcement"]["grader"]) == ("reinforcement", grader)
    assert told["reinforcement"]["hyperparameters"] == {
        "n_epochs": 1, "batch_size": 3, "learning_rate_multiplier": 2, "compute_multiplier": 2, "eval_interval": "auto",
    }  # fmt: skip
    assert services.job(train(client, training_file=send(client), method=method).id).spec["strategy"] == "grpo"
    with pytest.raises(openai.BadRequestError, match="ends with a user message"):
        train(client, training_file=sent)


def graded(**grader: Any) -> dict[str, Any]:
    return {"method": {"type": "reinforcement", "reinforcement": {"grader": grader}}}


CHECK = {"type": "string_check", "name": "a", "input": "{{sample.output_text}}", "reference": "x", "operation": "eq"}


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 501, "integrations", "leave it out"),
        ({"method": {"type": "reinforcement"}}, 400, "method.reinforcement.grader", "what a good answer is"),
        (graded(type="python", name="a", source="x"), 501, "method.reinforcement.grader", "no code of a caller's"),
        (
            graded(type="multi", graders={"a": {"type": "score_model"}}, calculate_output="a"),
            501,
            "method.reinforcement.grader",
            "no model is asked",
        ),
        (graded(**CHECK | {"operation": "is"}), 400, "grader.string_check.operation", "'ilike'"),
        (graded(**CHECK | {"input": "{{sample.choices}}"}), 400, "params.grader.input", "output_text"),
        (
            graded(type="multi", graders={"a": CHECK}, calculate_output="__import__('os')"),
            400,
            "params.grader.calculate_output",
            "no arithmetic",
        ),
        ({"method": {"type": "dpo", "supervised": {}}}, 400, "method.supervised", "give one"),
        ({"method": {"type": "supervised"}, "hyperparameters": {}}, 400, "hyperparameters", "method alone"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs", "greater than or equal to 1"),
        ({"hyperparameters": {"n_epoch": 1}}, 400, "hyperparameters.n_epoch", "n_epoch"),
        ({"suffix": "x" * 65}, 400, "suffix", "64"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k", "512"),
        ({"extra_body": {"lora_rr": 4}}, 400, "lora_rr", "did you mean lora_r"),
        ({"extra_body": {"lora_r": 0}}, 400, "lora_r", "greater than or equal to 1"),
        ({"extra_body": {"dataset": "x"}}, 400, "dataset", "unknown field"),
        ({"model": "org/tinny"}, 404, "model", "did you mean org/tiny"),
        ({"validation_file": "file-x"}, 404, "validation_file", "no such file: 'file-x'"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], status: int, param: str, says: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        train(client, **fields)

    assert (refused.value.status_code, refused.value.param) == (status, param)
    assert says in refused.value.message
    assert refused.value.code == ("model_not_found" if param == "model" else refused.value.code)
    assert list(client.fine_tuning.jobs.list()) == []


@pytest.mark.parametrize(
    ("fields", "status"), [({"model": "\ud800"}, 400), ({"training_file": "\ud800"}, 400), ({"\ud800": 1}, 400)]
)
def test_half_a_character_is_refused_like_any_wrong_word(
    client: openai.OpenAI, fields: dict[str, Any], status: int
) -> None:
    body = json.dumps({"model": "org/tiny", "training_file": send(client)} | fields)

    reply = httpx2.post(
        f"{client.base_url}fine_tuning/jobs", content=body, headers={"Content-Type": "application/json"}
    )

    assert (reply.status_code, reply.json()["error"]["type"]) == (status, "invalid_request_error")


def test_jobs_are_paged_newest_first_and_found_by_their_metadata(client: openai.OpenAI) -> None:
    file_id = send(client)
    told = [{"team": "a"}, {"team": "b"}, None, {"team": "a", "x": "y"}]
    made = [train(client, training_file=file_id, metadata=metadata).id for metadata in told]

    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == made[::-1]
    assert client.fine_tuning.jobs.list(limit=4).has_more is False
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1, metadata={"team": "a"})] == [made[3], made[0]]
    assert [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == [made[2]]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list(after="ftjob-nobody")


def test_a_waiting_job_is_paused_resumed_and_cancelled(client: openai.OpenAI) -> None:
    job = train(client)

    jobs = client.fine_tuning.jobs
    assert str(jobs.pause(job.id).status) == "paused"  # a word that its types do not know
    assert jobs.resume(job.id).status == "queued"
    cancelled = jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None
    with pytest.raises(openai.ConflictError, match="is cancelled") as refused:
        jobs.pause(job.id)
    assert refused.value.code == "conflict"
    with pytest.raises(openai.NotFoundError) as unknown:
        jobs.retrieve("ftjob-nobody")
    assert unknown.value.param == "fine_tuning_job_id"


def test_a_jobs_story_is_told_newest_first_page_by_page(client: openai.OpenAI, services: Services) -> None:
    job = train(client)
    run = start(services, services.job(job.id))
    report(services, run, [{"message": "mind the gap", "level": "warning"}], EventType.LOG)
    report(services, run, [{"done": 1, "total": 3, "unit": "steps"}], EventType.PROGRESS)
    report(services, run, [{"step": step, "loss": 4.0 / step} for step in (1, 2, 3)])

    told = list(client.fine_tuning.jobs.list_events(job.id, limit=2))

    assert [event.message for event in told] == [
        "Step 3, training loss=1.3333", "Step 2, training loss=2.0000", "Step 1, training loss=4.0000",
        "mind the gap", "Fine-tuning job started", "The job is queued",
    ]  # fmt: skip
    assert (told[0].type, told[0].data) == ("metrics", {"step": 3, "train_loss": 4 / 3})
    assert [event.level for event in told[2:5]] == ["info", "warn", "info"]
    assert len({event.id for event in told}) == 6
    assert client.fine_tuning.jobs.list_events(job.id, limit=6).has_more is False
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list_events(job.id, after="ftevent-x-1")


def test_what_a_job_ended_with_is_told_in_openais_words(client: openai.OpenAI, services: Services) -> None:
    job, failing = train(client), train(client)
    run = start(services, services.job(job.id))
    report(services, run, [{"step": 1, "loss": 0.5}, {"step": 1, "eval_loss": 0.75}, {"step": 2, "loss": 0.5}])
    result: Any = {"name": "ft:x", "steps": 6, "train_rows": 8, "train_tokens": 100, "loss": 0.25, "train_loss": 0.5}
    queue.end_job(services.database, run.id, 1, queue.Ending(state=JobState.SUCCEEDED, result=result))
    queue.claim(services.database, {"cpu": 9})
    failure = Failure(code="non_finite_loss", message="the loss is nan")
    queue.end_job(
        services.database, services.job(failing.id).id, 1, queue.Ending(state=JobState.FAILED, failure=failure)
    )

    done, failed = client.fine_tuning.jobs.retrieve(job.id), client.fine_tuning.jobs.retrieve(failing.id)

    # six steps of four rows are three epochs of eight
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "ft:x", 300)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert (checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint) == (6, "ft:x")
    assert (checkpoint.metrics.train_loss, checkpoint.metrics.full_valid_loss) == (0.5, 0.25)
    (results,) = done.result_files
    assert client.files.retrieve(results).purpose == "fine-tune-results"
    assert client.files.content(results).text.splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy", "1,0.5,,0.75,", "2,0.5,,0.25,",
    ]  # fmt: skip
    assert client.fine_tuning.jobs.retrieve(job.id).result_files == [results]
    client.files.delete(results)
    assert client.fine_tuning.jobs.retrieve(job.id).result_files == []
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "non_finite_loss", "the loss is nan")
    assert next(iter(client.fine_tuning.jobs.list_events(failing.id, limit=1))).level == "error"
    assert list(client.fine_tuning.jobs.checkpoints.list(failing.id)) == []


def test_a_file_is_not_deleted_under_a_job(client: openai.OpenAI, services: Services) -> None:
    file_id = send(client)
    job = train(client, training_file=file_id)
    client.fine_tuning.jobs.pause(job.id)

    with pytest.raises(openai.ConflictError, match="a job that has not ended"):
        client.files.delete(file_id)

    client.fine_tuning.jobs.cancel(job.id)
    client.files.delete(file_id)
    assert services.catalog.on_shelf("datasets") == []


def test_a_model_is_deleted_unless_it_is_needed(client: openai.OpenAI, services: Services, checkpoints: Path) -> None:
    services.catalog.add_model(checkpoints / "left", "left", base="org/tiny")
    job = train(client)

    with pytest.raises(openai.ConflictError, match="a job that has not ended"):
        client.models.delete("org/tiny")
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.ConflictError, match="is the base of left"):
        client.models.delete("org/tiny")

    assert client.models.delete("left").deleted
    assert client.models.delete("org/tiny").deleted
    assert list(client.models.list()) == []
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.delete("org/tiny")
    assert unknown.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["responses", "batches", "uploads", "moderations", "images/generations", "assistants"])
def test_what_there_is_not_is_refused_in_openais_form(client: openai.OpenAI, path: str) -> None:
    reply = httpx2.post(f"{client.base_url}{path}", json={})

    assert reply.status_code == 404
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}


def test_nothing_is_shared(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.fine_tuning.checkpoints.permissions.create("ft:x", project_ids=["p"])

    assert refused.value.status_code == 501
