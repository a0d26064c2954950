"""Fine-tuning as the OpenAI API asks for it: a job of files by their ids, and what came of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from modelworks.app.openai_files import ALL_ROWS, PROMPTS, RESULTS, add_file, dataset_of, list_files
from modelworks.app.services import Services
from modelworks.app.tuning_methods import ANSWERS_A_PROMPT, Hyperparameters, Method, chosen, refused, training_words
from modelworks.core.errors import Invalid, NotFound, Problem, Unsupported
from modelworks.core.ids import NAME_PATTERN, new_id
from modelworks.core.nouns import Event, EventType, File, Job, JsonObject, JsonValue
from modelworks.core.registry import nearest
from modelworks.core.spec import Spec, parse_spec
from modelworks.core.states import JobState
from modelworks.store import catalog, events
from modelworks.train.plan import choose_strategy
from modelworks.train.spec import TrainSpec

JOB_PREFIX = "ftjob-"
ORGANIZATION = "modelworks"
TOLD = (EventType.STATE, EventType.METRIC, EventType.LOG, EventType.ARTIFACT)
# What has a word of OpenAI's, or is chosen here.
NOT_EXTENSIONS = {"model", "dataset", "seed", "name", "replace", "output_dir"}
_BASE = re.compile(rf"{NAME_PATTERN}(/{NAME_PATTERN})?")


class FineTuning(Spec):
    """What OpenAI's clients send; any other field must be one of a training's own."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**32)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: (
        dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]] | None
    ) = Field(None, max_length=16)
    integrations: list[Any] | None = None


class NoSuchModel(NotFound):
    """The `model` of a job means nothing here."""

    code = "model_not_found"


def create(services: Services, body: Mapping[str, object]) -> Job:
    """Check what was asked, read its files, and queue the training. Blocks.

    Raises:
        Invalid: a field is unknown or wrong; Unsupported: it asks for what is not done here.
        NotFound: there is no such model or file.
    """
    own = TrainSpec.model_fields.keys() - NOT_EXTENSIONS
    extensions = {key: value for key, value in body.items() if key in own}
    unknown = body.keys() - own - FineTuning.model_fields.keys()
    if unknown:
        known = own | FineTuning.model_fields.keys()
        raise refused(
            Invalid, *(Problem(key, "unknown field", nearest(key, known)) for key in map(_legible, sorted(unknown)))
        )
    asked = parse_spec(FineTuning, {key: value for key, value in body.items() if key not in own}, where="job")
    if asked.integrations:
        raise refused(Unsupported, Problem("integrations", "no other service is told of a job here", "leave it out"))
    hyperparameters = chosen(asked.method, asked.hyperparameters)
    try:
        services.catalog.model(asked.model)
    except NotFound as error:
        raise NoSuchModel(error.message, problems=(Problem("model", error.message),)) from None
    grader = asked.method.reinforcement.grader if asked.method and asked.method.reinforcement else None
    read_as = ALL_ROWS if grader is None else PROMPTS
    dataset = dataset_of(services, asked.training_file, asked.validation_file, read_as)
    job_id = new_id()
    spec: dict[str, Any] = {"model": asked.model, "dataset": dataset.name, "name": _name_for(asked, job_id)}
    if asked.seed is not None:
        spec["seed"] = asked.seed
    words = training_words(hyperparameters)
    params = [words.get("params"), {"grader": grader} if grader else None, extensions.get("params")]
    merged = {name: value for each in params if isinstance(each, dict) for name, value in each.items()}
    spec |= words | extensions | ({"params": merged} if merged else {})
    if hyperparameters.learning_rate_multiplier is not None:
        spec["learning_rate"] = _rate(spec) * hyperparameters.learning_rate_multiplier
    labels: JsonObject = {"fine_tuning": asked.model_dump(mode="json", exclude_none=True)}
    return services.submit("train", spec, job_id=job_id, aliases=(JOB_PREFIX + job_id,), labels=labels)


def job_named(services: Services, public_id: str) -> Job:
    """A training by its id, with or without OpenAI's prefix; raises NotFound."""
    try:
        return services.job_of("train", public_id.removeprefix(JOB_PREFIX))
    except NotFound:
        what = f"no such fine-tuning job: {public_id!r}"
        raise NotFound(what, problems=(Problem("fine_tuning_job_id", what),)) from None


def list_jobs(services: Services, after: str | None, limit: int, wanted: Callable[[Job], bool]) -> list[Job]:
    """Trainings that are wanted, newest first, from the one after `after` on."""
    before = job_named(services, after).id if after else None
    found: list[Job] = []
    while len(found) < limit:
        page = services.jobs(kind="train", before=before, limit=1000)
        found += filter(wanted, page)
        if len(page) < 1000:
            break
        before = page[-1].id
    return found[:limit]


def told(services: Services, job: Job, before: int | None, limit: int) -> list[Event]:
    """What a job told that matters to a reader, newest first, below number `before`."""
    return events.newest(services.database, job.id, TOLD, limit, before)[::-1]


def results_of(services: Services, job: Job) -> list[File]:
    """The numbers of every step as a file: made when it is first asked for, and not again once it was removed."""
    if job.state is not JobState.SUCCEEDED:
        return []
    if not catalog.has_made(services.database, job.id, RESULTS):
        with services.catalog.staging() as folder:
            path = folder / "results.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(_result_rows(services, job))
            facts = {"filename": "step_metrics.csv", "purpose": RESULTS, "job_id": job.id}
            return [add_file(services, path, facts)]
    return [file for file in list_files(services, RESULTS) if file.job_id == job.id]


def resolved(job: Job) -> JsonObject:
    """The hyperparameters that a training runs with, in OpenAI's words."""
    spec = parse_spec(TrainSpec, job.spec)
    _, params = choose_strategy(spec)
    epochs, rows = float(spec.num_train_epochs), int(spec.per_device_train_batch_size)
    answers = getattr(params, "num_generations", 1)
    words: JsonObject = {
        # A share of an epoch, which OpenAI does not know, is told as it is.
        "n_epochs": int(epochs) if epochs % 1 == 0 else epochs,
        "batch_size": rows * spec.gradient_accumulation_steps // answers,
        "learning_rate_multiplier": round(_rate(job.spec) / _rate(job.spec | {"learning_rate": "auto"}), 6),
    }
    if spec.strategy == "grpo":
        return words | {"compute_multiplier": answers / ANSWERS_A_PROMPT, "eval_interval": spec.eval_steps or "auto"}
    return words | ({"beta": params.beta} if hasattr(params, "beta") else {})


def _result_rows(services: Services, job: Job) -> list[list[object]]:
    rows: dict[JsonValue, list[object]] = {}
    for event in events.newest(services.database, job.id, (EventType.METRIC,), 10_000_000):
        body = event.body
        held_out = {key.removeprefix("eval_"): value for key, value in body.items() if key.startswith("eval_")}
        # And not the numbers of something else, which is trained before.
        if "loss" in body or held_out:
            row = rows.setdefault(body["step"], [body["step"], None, None, None, None])
            row[1:3] = [body["loss"], _accuracy(body)] if "loss" in body else row[1:3]
            row[3:5] = [held_out.get("loss"), _accuracy(held_out)] if held_out else row[3:5]
    table = list(rows.values())
    # At the end they are measured in any case.
    if table and table[-1][3:] == [None, None] and job.result is not None:
        table[-1][3:] = [job.result.get("loss"), _accuracy(job.result)]
    return [["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"], *table]


def _accuracy(numbers: JsonObject) -> JsonValue:
    """How often the right token, or of two answers the better one, is the likelier."""
    known = ("mean_token_accuracy", "rewards/accuracies", "accuracy")
    return next((numbers[key] for key in known if key in numbers), None)


def _rate(spec: Mapping[str, Any]) -> float:
    read = parse_spec(TrainSpec, spec, where="job")
    strategy, _ = choose_strategy(read)
    # One without a rate does not train every weight, which is refused when the job is submitted.
    default = strategy.learning_rates.get(read.tuning, 1e-5)
    return default if read.learning_rate == "auto" else read.learning_rate


def _name_for(asked: FineTuning, job_id: str) -> str:
    base = asked.model.split(":")[1] if asked.model.startswith("ft:") else asked.model
    if not _BASE.fullmatch(base):
        base = _legal(base.rstrip("/").rsplit("/", 1)[-1]) or "model"
    return f"ft:{base}:{ORGANIZATION}:{_legal(asked.suffix or '')}:{job_id[-8:]}"


def _legible(key: str) -> str:
    """JSON can hold half a character (a lone surrogate), an answer in UTF-8 cannot."""
    return key.encode(errors="replace").decode()


def _legal(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_")
