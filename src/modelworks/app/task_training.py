"""Trainings for a task, one at a time: the data must fit the task, and the result is found by what it was made for."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from modelworks.app.dataset_files import dataset_called
from modelworks.app.services import Services
from modelworks.app.training import shortened, unfinished_training
from modelworks.core.errors import Conflict, Invalid, NotFound
from modelworks.core.nouns import Adapter, AnyArtifact, Dataset, Job, JsonObject, Model
from modelworks.core.registry import choose
from modelworks.core.spec import parse_spec
from modelworks.core.states import JobState
from modelworks.data.format import Format, formats
from modelworks.data.record import Preference
from modelworks.train.plan import provider_on
from modelworks.train.spec import TrainSpec
from modelworks.train.strategy import strategies

# The format that belongs to a task; every other task takes whatever is a text or a conversation.
TASK_FORMATS: Mapping[str, str | None] = {
    "text-generation": None,
    "summarization": "summarization",
    "extractive-question-answering": "question_answering",
}
DEFAULT_TASK = "text-generation"
_STARTING = threading.Lock()


@dataclass(frozen=True)
class Started:
    job: Job
    # What was done otherwise than asked.
    notes: tuple[str, ...]
    # What will load the network, and why not what was asked for.
    provider: str
    missing: str


def start_alone(services: Services, spec: Mapping[str, object], task: str) -> Started:
    """Start a training where none waits or runs; `spec` is a TrainSpec's body without a name. May import a file.

    Raises:
        Conflict: another training has not ended.
        Invalid: the dataset does not fit the task or the strategy, or has rows that cannot be read.
    """
    if not _STARTING.acquire(blocking=False):
        raise Conflict("another training is being started; wait for it")
    try:
        if going := unfinished_training(services):
            raise Conflict(f"training {public_id(going[0])} is {going[0].state}; wait for it, or stop it")
        dataset = dataset_called(services, called := str(spec["dataset"]))
        name = dataset.id if called == dataset.id else dataset.name
        notes = check_fits(dataset, task, str(spec.get("strategy", "sft")))
        model = services.catalog.model(str(spec["model"]))
        length, note = shortened(spec, model)
        alias = _unused_alias(services)
        job = services.submit(
            "train",
            {**spec, **length, "dataset": name, "name": services.catalog.unused_name("models", _name_of(model))},
            aliases=(alias,),
            labels={"task": task},
        )
        train = parse_spec(TrainSpec, job.spec)
        return Started(job, (*notes, *note), *provider_on(train.provider, on_gpu="gpu" in job.needs))
    finally:
        _STARTING.release()


def check_fits(dataset: Dataset, task: str, strategy: str) -> tuple[str, ...]:
    """What must be said of training on `dataset`.

    Raises:
        Invalid: it cannot be meant.
    """
    if dataset.bad_rows:
        report = json.loads((dataset.path / "dataset.json").read_text(encoding="utf-8"))
        first = next(iter(report["problems"]), "")
        raise Invalid(
            f"{dataset.bad_rows} rows of {dataset.name} cannot be read, first: {first}; mend them and upload it again"
        )
    by_preferences = Preference in choose(strategies(), strategy, "training strategy").learns
    if by_preferences and task != DEFAULT_TASK:
        raise Invalid(f"strategy {strategy} learns from preferences, for the task {DEFAULT_TASK} only, not for {task}")
    known = formats()
    form, wanted = known[dataset.format], "preference" if by_preferences else TASK_FORMATS[task]
    if _fits(form, wanted, strategy):
        return ()
    if form.name == "input_output" and wanted == "summarization":
        note = "its inputs are asked as they stand; with columns document and summary they are asked for a summary"
        return (f"dataset: {note}",)
    columns = (*known[wanted].needs, *known[wanted].optional) if wanted else ("e.g. input and output", "or messages")
    needs = ", ".join(column.replace("|", " or ") for column in columns)
    raise Invalid(
        f"dataset {dataset.name} is {form.name} (columns {', '.join(dataset.columns)}), which task {task} with "
        f"strategy {strategy} cannot learn from: it needs {needs}"
    )


def trained_models(services: Services) -> list[Model | Adapter]:
    """Every model and adapter that was trained here, oldest first."""
    return sorted((found for found in services.servable() if _was_trained(found)), key=lambda found: found.number)


def trained_model(services: Services, number_or_name: str) -> Model | Adapter:
    """A trained model by its number, name or id; raises NotFound."""
    catalog = services.catalog
    try:
        is_number = re.fullmatch("[0-9]{1,15}", number_or_name)
        found = catalog.numbered("models", int(number_or_name)) if is_number else catalog.model(number_or_name)
    except NotFound:
        found = None
    if not isinstance(found, Model | Adapter) or not _was_trained(found):
        raise NotFound(f"Model not found: no trained model is called {number_or_name}; list them to see their numbers")
    return found


def labels_of(services: Services, trained: Model | Adapter) -> JsonObject:
    """What the job that made a model was labelled with."""
    return services.job(trained.job_id).labels if trained.job_id else {}


def latest_training(services: Services) -> Job | None:
    """The training that runs; else the first that waits; else the one that ended last; None where there was none."""
    going = sorted(unfinished_training(services), key=lambda job: (job.state is not JobState.RUNNING, job.id))
    return next(iter(going or services.jobs(kind="train", limit=1)), None)


def public_id(job: Job) -> str:
    """What a training is called where it has a short name, train_NNNNNN."""
    return next((alias for alias in job.aliases if alias.startswith("train_")), job.id)


async def forget_trained(services: Services, trained: Model | Adapter) -> None:
    """Remove a trained model and give its memory back.

    Raises:
        Conflict: it answers somebody now, a job uses it, or an adapter needs it.
    """
    base = trained.id if isinstance(trained, Model) else trained.base
    for status in services.running_gateway.deployments() if services.running_gateway else ():
        if status.deployment.model == base and (isinstance(trained, Model) or trained.name in status.adapters):
            if status.outstanding:
                raise Conflict(f"{trained.name} is being served: {status.outstanding} answers are being written")
            await services.gateway.unload(trained.id)
    await asyncio.to_thread(services.remove, "models", trained.id)


def _fits(form: Format, wanted: str | None, strategy: str) -> bool:
    if wanted == "preference":
        # rlhf takes conversations too, where a reward model is named; it tells so itself.
        return form.makes in strategies()[strategy].learns
    if wanted:
        return form.name == wanted
    return form.makes in strategies()[strategy].learns and form.name not in TASK_FORMATS.values()


def _name_of(model: AnyArtifact) -> str:
    short = re.sub(r"[^a-z0-9]+", "-", model.name.rsplit("/", 1)[-1].lower()).strip("-")[:100]
    return f"my-{short}-finetuned"


def _unused_alias(services: Services) -> str:
    while True:
        alias = f"train_{secrets.randbelow(1_000_000):06d}"
        try:
            services.job(alias)
        except NotFound:
            return alias


def _was_trained(found: AnyArtifact) -> bool:
    return found.recipe.get("kind") == "train"
