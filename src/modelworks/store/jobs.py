"""Queries on jobs and runs: one function a verb, one transaction each, every move conditional on state and run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from sqlalchemy import Connection, RowMapping, Select, func, insert, or_, select, update

from modelworks.core import clock
from modelworks.core.errors import Conflict, NotFound
from modelworks.core.ids import new_id
from modelworks.core.nouns import EventType, Failure, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.store import catalog, events
from modelworks.store.database import Database
from modelworks.store.tables import job_aliases, jobs, runs

# A waiting job gains one priority a quarter of an hour, so that nothing waits for ever.
AGEING_SECONDS = 900
# The label with the ids of the jobs that a job consists of.
CHILDREN = "children"
_FIELDS = {each.name for each in fields(Job)}


@dataclass(frozen=True, kw_only=True)
class NewJob:
    kind: str
    spec: JsonObject
    inputs: JsonObject
    needs: dict[str, int]
    priority: int = 0
    idempotency_key: str | None = None
    aliases: tuple[str, ...] = ()
    # What a door was told beside the spec and must be able to tell again; and CHILDREN.
    labels: JsonObject = field(default_factory=dict)
    # Chosen by the caller when the job's folder is made before the job.
    id: str = field(default_factory=new_id)
    # What the idempotency key stands for; by default the spec itself.
    request: JsonObject | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job taken by a worker: its fence is `job.runs`."""

    job: Job
    inputs: JsonObject


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ends. `artifacts` become visible in the same transaction as the state."""

    state: JobState
    result: JsonObject | None = None
    failure: Failure | None = None
    artifacts: tuple[catalog.Publication, ...] = ()
    # A name for what another job made.
    alias: catalog.Alias | None = None


def insert_job(database: Database, new: NewJob, children: Sequence[NewJob] = ()) -> Job:
    """Accept a job with all its children, or return the one that the same idempotency key made before.

    Raises:
        Conflict: the key was used for another request.
    """
    digest = _request_digest(new.kind, new.request or new.spec)
    with database.write() as connection:
        if new.idempotency_key is not None:
            earlier = _first(connection, select(jobs).where(jobs.c.idempotency_key == new.idempotency_key))
            if earlier is not None:
                return _same_request(connection, earlier, new.idempotency_key, digest)
        _insert(connection, new, digest)
        for child in children:
            _insert(connection, child, _request_digest(child.kind, child.spec))
        return _get(connection, new.id)


def earlier_request(database: Database, key: str, kind: str, request: JsonObject) -> Job | None:
    """Return the job that this idempotency key made before.

    Raises:
        Conflict: it was another request.
    """
    with database.read() as connection:
        row = _first(connection, select(jobs).where(jobs.c.idempotency_key == key))
        return None if row is None else _same_request(connection, row, key, _request_digest(kind, request))


def get_job(database: Database, id_or_alias: str) -> Job:
    """Raises NotFound when there is no such job."""
    with database.read() as connection:
        return _get(connection, id_or_alias)


def list_jobs(
    database: Database,
    *,
    states: Sequence[JobState] = (),
    kind: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[Job]:
    """Newest first; `before` is the id that the last page ended with."""
    query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
    if states:
        query = query.where(jobs.c.state.in_([state.value for state in states]))
    if kind:
        query = query.where(jobs.c.kind == kind)
    if before:
        query = query.where(jobs.c.id < before)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
        aliases = _aliases_of(connection, [row["id"] for row in rows])
    return [_job(row, aliases.get(row["id"], ())) for row in rows]


def children(database: Database, job: Job) -> list[Job]:
    """The jobs that a job consists of, in their order."""
    with database.read() as connection:
        return _family(connection, job)[1:]


def running(database: Database) -> list[Claim]:
    """Every job in state running: what a worker has to look after."""
    return _claims(database, JobState.RUNNING)


def count_by_state(database: Database) -> dict[JobState, int]:
    """How many jobs there are of each state."""
    query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    with database.read() as connection:
        found = {JobState(state): int(count) for state, count in connection.execute(query)}
    return {state: found.get(state, 0) for state in JobState}


def unfinished(database: Database) -> list[Claim]:
    """Every job that has not ended: what may still publish a name or use an artifact."""
    return _claims(database, JobState.RUNNING, JobState.QUEUED, JobState.PAUSED)


def claim(database: Database, capacity: Mapping[str, int]) -> Claim | None:
    """Take the queued job of highest priority, oldest first, that fits into the free slots, and open its next run."""
    now = clock.now()
    with database.alone() as connection:
        free = _free_slots(connection, capacity)
        ready = select(jobs).where(jobs.c.state == JobState.QUEUED.value, jobs.c.not_before <= now)
        rows = connection.execute(ready.with_for_update(skip_locked=True)).mappings().all()
        for row in sorted(rows, key=lambda row: (-_aged(row, now), row["id"])):
            if all(free.get(resource, 0) >= units for resource, units in row["needs"].items()):
                return _open_run(connection, row, now)
    return None


def lose_run(database: Database, job_id: str, run: int, *, reason: str, not_before: datetime) -> bool:
    """Put a job whose runner died back into the queue."""
    with database.write() as connection:
        moved = _move(connection, job_id, run, JobState.QUEUED, not_before=not_before)
        if moved:
            _close_run(connection, job_id, run, "lost", reason)
            _tell_state(connection, job_id, JobState.QUEUED, reason=reason)
        return moved


def end_job(database: Database, job_id: str, run: int, ending: Ending) -> bool:
    """End a running job if `run` is still its newest: state, result, artifacts and event in one transaction."""
    with database.write() as connection:
        moved = _move(
            connection, job_id, run, ending.state, result=ending.result, finished_at=clock.now(),
            error=asdict(ending.failure) if ending.failure else None,
        )  # fmt: skip
        if moved:
            for publication in ending.artifacts:
                made = catalog.publish(connection, publication)
                told: JsonObject = {"id": made.id, "name": made.name, "size_bytes": made.size_bytes}
                events.tell(connection, job_id, EventType.ARTIFACT, told)
            if ending.alias is not None:
                name, artifact = catalog.take_name(connection, ending.alias), ending.alias.artifact
                _note(connection, job_id, f"{name} now means {artifact.name}")
            _close_run(connection, job_id, run, ending.state.value, ending.failure.message if ending.failure else None)
            reason = {"reason": ending.failure.message} if ending.failure else {}
            _tell_state(connection, job_id, ending.state, **reason)
        return moved


def stop_run(database: Database, job_id: str, run: int, in_the_way: Failure | None = None) -> JobState:
    """End a run that stopped because it was asked to; return what its job became.

    What is asked for now decides: a cancel comes before a pause, and a pause that was taken back, or a stop that
    nobody here asked for, lets the job go on. A run that something is in the way of pauses unasked.
    """
    with database.write() as connection:
        job = _get(connection, job_id)
        state = JobState.PAUSED if job.pause_requested or in_the_way else JobState.QUEUED
        state = JobState.CANCELLED if job.cancel_requested else state
        values: dict[str, object] = {"finished_at": clock.now()} if state.is_final else {}
        if in_the_way and not state.is_final:
            values = {"pause_requested": True, "error": asdict(in_the_way)}
        if _move(connection, job_id, run, state, **values):
            reason = in_the_way.message if in_the_way else None
            _close_run(connection, job_id, run, "cancelled" if state.is_final else "paused", reason)
            facts = {"reason": in_the_way.message, "code": in_the_way.code} if in_the_way else {}
            _tell_state(connection, job_id, state, **facts)
        return state


def deaths(database: Database, job_id: str) -> int:
    """How many runs of a job were lost."""
    lost = select(func.count()).where(runs.c.job_id == job_id, runs.c.outcome == "lost")
    with database.read() as connection:
        return int(connection.execute(lost).scalar_one())


def request_cancel(database: Database, id_or_alias: str) -> Job:
    """Cancel a waiting job at once, ask a running one to stop, leave an ended one as it is; return what is true now.

    Like a pause and a resume, it reaches the job's children as well.
    """
    with database.write() as connection:
        job = _get(connection, id_or_alias)
        for each in _family(connection, job):
            if each.state in {JobState.QUEUED, JobState.PAUSED}:
                _put(connection, each.id, JobState.CANCELLED, finished_at=clock.now(), cancel_requested=True)
            elif each.state is JobState.RUNNING and not each.cancel_requested:
                _note(connection, each.id, "cancel requested", cancel_requested=True)
        return _get(connection, job.id)


def request_pause(database: Database, id_or_alias: str) -> Job:
    """Pause a queued job at once, ask a running one to stop, leave a paused one as it is; return what is true now.

    Raises:
        Conflict: the job has ended, or is to be cancelled.
    """
    with database.write() as connection:
        job = _going(connection, id_or_alias, "paused")
        for each in _family(connection, job):
            if each.state is JobState.QUEUED:
                _put(connection, each.id, JobState.PAUSED, pause_requested=True)
            elif each.state is JobState.RUNNING and not (each.pause_requested or each.cancel_requested):
                _note(connection, each.id, "pause requested", pause_requested=True)
        return _get(connection, job.id)


def resume(database: Database, id_or_alias: str) -> Job:
    """Put a paused job back into the queue, or take back a pause that was asked for; return what is true now.

    Raises:
        Conflict: the job has ended, or is to be cancelled.
    """
    with database.write() as connection:
        job = _going(connection, id_or_alias, "resumed")
        for each in _family(connection, job):
            if each.state is JobState.PAUSED:
                _put(connection, each.id, JobState.QUEUED, pause_requested=False, not_before=clock.now(), error=None)
            elif each.state is JobState.RUNNING and each.pause_requested:
                _note(connection, each.id, "pause taken back", pause_requested=False)
        return _get(connection, job.id)


def events_offset(database: Database, job_id: str) -> int:
    """How many bytes of the job's events.jsonl have been taken over."""
    with database.read() as connection:
        return int(connection.execute(select(jobs.c.events_offset).where(jobs.c.id == job_id)).scalar_one())


def _insert(connection: Connection, new: NewJob, digest: str) -> None:
    connection.execute(
        insert(jobs).values(
            id=new.id, kind=new.kind, spec=new.spec, inputs=new.inputs, state=JobState.QUEUED.value,
            priority=new.priority, needs=new.needs, runs=0, cancel_requested=False, pause_requested=False,
            last_seq=0, events_offset=0, labels=new.labels, idempotency_key=new.idempotency_key,
            request_digest=digest, not_before=clock.now(), created_at=clock.now(),
        )
    )  # fmt: skip
    for alias in new.aliases:
        connection.execute(insert(job_aliases).values(alias=alias, job_id=new.id))
    _tell_state(connection, new.id, JobState.QUEUED)


def _family(connection: Connection, job: Job) -> list[Job]:
    """The job, and its children behind it."""
    found = job.labels.get(CHILDREN)
    ids = [str(each) for each in found] if isinstance(found, list) else []
    rows = connection.execute(select(jobs).where(jobs.c.id.in_(ids))).mappings()
    return [job, *sorted(map(_job, rows), key=lambda child: ids.index(child.id))]


def _claims(database: Database, *states: JobState) -> list[Claim]:
    with database.read() as connection:
        rows = connection.execute(select(jobs).where(jobs.c.state.in_(states))).mappings().all()
    return [Claim(job=_job(row), inputs=row["inputs"]) for row in rows]


def _free_slots(connection: Connection, capacity: Mapping[str, int]) -> dict[str, int]:
    free = dict(capacity)
    query = select(jobs.c.needs).where(jobs.c.state == JobState.RUNNING.value)
    for needs in connection.execute(query).scalars():
        for resource, units in needs.items():
            free[resource] = free.get(resource, 0) - units
    return free


def _aged(row: RowMapping, now: datetime) -> int:
    waited = (now - row["created_at"]).total_seconds()
    return int(row["priority"] + waited // AGEING_SECONDS)


def _open_run(connection: Connection, row: RowMapping, now: datetime) -> Claim:
    number = row["runs"] + 1
    values = {"state": JobState.RUNNING.value, "runs": number, "started_at": row["started_at"] or now}
    connection.execute(update(jobs).where(jobs.c.id == row["id"]).values(values))
    connection.execute(insert(runs).values(job_id=row["id"], number=number, started_at=now))
    _tell_state(connection, row["id"], JobState.RUNNING, run=number)
    return Claim(job=_get(connection, row["id"]), inputs=row["inputs"])


def _move(connection: Connection, job_id: str, run: int, state: JobState, **values: object) -> bool:
    """Change state only from running and only for the newest run: the fence."""
    guarded = update(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING.value, jobs.c.runs == run)
    return connection.execute(guarded.values(state=state.value, **values)).rowcount == 1


def _put(connection: Connection, job_id: str, state: JobState, **values: object) -> None:
    """Change the state of a job that does not run."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=state.value, **values))
    _tell_state(connection, job_id, state)


def _note(connection: Connection, job_id: str, message: str, **values: object) -> None:
    if values:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
    events.tell(connection, job_id, EventType.LOG, {"message": message, "level": "info"})


def _going(connection: Connection, id_or_alias: str, verb: str) -> Job:
    job = _get(connection, id_or_alias)
    if job.state.is_final or job.cancel_requested:
        now = job.state.value if job.state.is_final else "being cancelled"
        raise Conflict(f"job {job.id} is {now}; only one that has not ended can be {verb}")
    return job


def _close_run(connection: Connection, job_id: str, run: int, outcome: str, reason: str | None) -> None:
    this = update(runs).where(runs.c.job_id == job_id, runs.c.number == run)
    connection.execute(this.values(outcome=outcome, reason=reason, ended_at=clock.now()))


def _tell_state(connection: Connection, job_id: str, state: JobState, **facts: str | int) -> None:
    events.tell(connection, job_id, EventType.STATE, {"state": state.value, **facts})


def _same_request(connection: Connection, earlier: RowMapping, key: str, digest: str) -> Job:
    if earlier["request_digest"] != digest:
        raise Conflict(
            f"idempotency key {key!r} was used for job {earlier['id']} with another request; "
            "use a new key for a new request"
        )
    return _get(connection, earlier["id"])


def _request_digest(kind: str, request: JsonObject) -> str:
    return hashlib.sha256(f"{kind} {json.dumps(request, sort_keys=True)}".encode()).hexdigest()


def _get(connection: Connection, id_or_alias: str) -> Job:
    alias = select(job_aliases.c.job_id).where(job_aliases.c.alias == id_or_alias).scalar_subquery()
    row = _first(connection, select(jobs).where(or_(jobs.c.id == id_or_alias, jobs.c.id == alias)))
    if row is None:
        raise NotFound(f"no job {id_or_alias!r}; `modelworks jobs ls` lists them")
    return _job(row, _aliases_of(connection, [row["id"]]).get(row["id"], ()))


def _first(connection: Connection, query: Select[tuple[object, ...]]) -> RowMapping | None:
    return connection.execute(query).mappings().first()


def _aliases_of(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(select(job_aliases).where(job_aliases.c.job_id.in_(ids)).order_by("alias")):
        found[row.job_id] = (*found.get(row.job_id, ()), row.alias)
    return found


def _job(row: RowMapping, aliases: tuple[str, ...] = ()) -> Job:
    error = row["error"] and Failure(**row["error"] | {"problems": tuple(row["error"]["problems"])})
    facts = {name: value for name, value in row.items() if name in _FIELDS}
    return Job(**facts | {"state": JobState(row["state"]), "error": error, "aliases": aliases})
