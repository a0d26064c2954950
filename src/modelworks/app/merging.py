"""Merges as a foreign door asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelworks.app.folder_merging import read_merge
from modelworks.app.kinds import kind_named
from modelworks.app.services import Services
from modelworks.core.errors import Invalid, NotFound
from modelworks.core.nouns import AnyArtifact, EventType, Job, JsonObject
from modelworks.core.spec import parse_spec
from modelworks.core.states import JobState
from modelworks.merge.estimate import Estimate as Estimate
from modelworks.merge.room import check
from modelworks.merge.spec import MergeSpec
from modelworks.store import events

NO_GPU = "use_gpu: there is no GPU here, so the merge runs on the CPU; the result is the same"


def queue_merge(services: Services, spec: Mapping[str, object], params: JsonObject, notes: Sequence[str]) -> Job:
    """Queue a merge; what is done otherwise than asked is told in its log too.

    Args:
        spec: a MergeSpec's body; a device of cuda becomes the CPU where there is no GPU.
        params: what the door was asked, to be told again.
    """
    told, body = list(notes), dict(spec)
    if spec["device"] == "cuda":
        has_gpu = services.settings.slots.get("gpu", 0) > 0
        body["device"] = "auto" if has_gpu else "cpu"
        told += [] if has_gpu else [NO_GPU]
    job = services.submit("merge", body, labels={"params": params, "warnings": list(told)})
    with services.database.write() as connection:
        for note in told:
            events.tell(connection, job.id, EventType.LOG, {"message": note, "level": "warning"})
    services.feed.tell(job.id)
    return job


def plan_merge(services: Services, body: Mapping[str, object]) -> Estimate:
    """Check a merge as its job would, and say what it would do and take; `body` may be mergekit's.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    told, notes = read_merge(body)
    spec = parse_spec(MergeSpec, told, where="merge")
    return check(spec, services.inputs(kind_named("merge"), spec), notes)


def percent_done(services: Services, job: Job) -> float:
    """How far a merge is, as it last told."""
    if job.state is JobState.SUCCEEDED:
        return 100.0
    told = services.progress(job.id)
    done, total = (told.body.get("done"), told.body.get("total")) if told else (None, None)
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        return round(100 * done / total, 1)
    return 0.0


def merged_by(services: Services, job: Job) -> AnyArtifact:
    """The model that a merge made.

    Raises:
        Invalid: the merge has not succeeded.
        NotFound: the model was removed since.
    """
    if job.state is not JobState.SUCCEEDED:
        raise Invalid("Job not completed")
    made = next((model for model in services.catalog.on_shelf("models") if model.job_id == job.id), None)
    if made is None:
        raise NotFound(f"the model that job {job.id} made was removed; merge again")
    return made
