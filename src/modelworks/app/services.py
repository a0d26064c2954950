"""The verbs on jobs, and the way to everything else a door may ask for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from modelworks.app.catalog import Catalog, Shelf
from modelworks.app.feed import Feed
from modelworks.app.kinds import JobKind, kind_named
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, Invalid, ModelworksError, NotFound, Problem, Unavailable, Unsupported
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, AnyArtifact, Event, EventType, Job, JsonObject, Model
from modelworks.core.spec import Spec, parse_spec
from modelworks.core.states import JobState
from modelworks.jobs.folder import JobFolder
from modelworks.serve.entries import Entry
from modelworks.serve.gateway import Gateway
from modelworks.store import catalog as shelf_queries
from modelworks.store import events, files
from modelworks.store import jobs as queue
from modelworks.store.database import Database

CANCEL_WAIT_SECONDS = 45.0
# A pause writes a checkpoint first.
PAUSE_WAIT_SECONDS = 150.0


@dataclass
class Services:
    settings: Settings
    database: Database
    catalog: Catalog
    feed: Feed = field(default_factory=Feed)
    # The operator's own models, by name.
    entries: Mapping[str, Entry] = field(default_factory=dict)
    # Set by whoever runs an event loop: the server, or a chat in the terminal.
    running_gateway: Gateway | None = None

    @property
    def gateway(self) -> Gateway:
        if self.running_gateway is None:
            raise Unavailable("no engine can be started here: the server is still starting, or is stopping")
        return self.running_gateway

    def servable(self) -> list[Model | Adapter]:
        return self.catalog.servable()

    def submit(
        self,
        kind_name: str,
        body: Mapping[str, object],
        *,
        priority: int = 0,
        idempotency_key: str | None = None,
        aliases: tuple[str, ...] = (),
        job_id: str | None = None,
        labels: JsonObject | None = None,
    ) -> Job:
        """Check a request as far as can be without starting it, and queue it; a training with a sweep as the sweep.

        Raises:
            Invalid: with every problem of the spec, its names and its inputs at once.
            Conflict: the name it would publish is taken, or the idempotency key belongs to another request.
            OutOfSpace: its output would not fit.
        """
        kind = kind_named("sweep" if kind_name == "train" and {"sweep", "sweep_metric"} & body.keys() else kind_name)
        spec = parse_spec(kind.spec, body, where=kind.name)
        if not -100 <= priority <= 100:
            raise Invalid(f"priority {priority} is not between -100 and 100")
        request = spec.model_dump(mode="json")
        if idempotency_key is not None:
            earlier = queue.earlier_request(self.database, idempotency_key, kind.name, request)
            if earlier is not None:
                return earlier
        new = replace(
            self._accept(kind, spec, priority), aliases=aliases, idempotency_key=idempotency_key,
            id=job_id or new_id(), request=request, labels=labels or {},
        )  # fmt: skip
        children = self._children(kind, spec, new)
        if children:
            new = replace(new, labels=new.labels | {queue.CHILDREN: [child.id for child in children]})
        return queue.insert_job(self.database, new, children)

    def _accept(self, kind: JobKind[Any], spec: Spec, priority: int) -> queue.NewJob:
        inputs = self.inputs(kind, spec)
        kind.check(spec, inputs)
        needs = self._needs(kind, spec)
        named = self._choose_name(kind, spec)
        if output_dir := named.get("output_dir"):
            self.catalog.check_output(str(output_dir))
        files.check_space(self.settings.home, kind.space(spec, inputs))
        return queue.NewJob(
            kind=kind.name, spec=named | kind.settle(spec, inputs), needs=needs, priority=priority,
            inputs={name: shelf_queries.to_json(found) for name, found in inputs.items()},
        )  # fmt: skip

    def _children(self, kind: JobKind[Any], spec: Spec, parent: queue.NewJob) -> list[queue.NewJob]:
        """The jobs that a job consists of; what is wrong with any of them is told at once."""
        accepted: list[queue.NewJob] = []
        wrong: dict[str, tuple[ModelworksError, str]] = {}
        wanted = kind.children(spec, str(parent.spec.get("name")))
        # Of one moment, so only sorted they go in their order.
        for child_id, child in zip(sorted(new_id() for _ in wanted), wanted, strict=True):
            try:
                new = self._accept(kind_named("train"), child.spec, parent.priority)
            except ModelworksError as error:
                wrong.setdefault(error.message, (error, child.label))
                continue
            labels: JsonObject = {kind.name: parent.id, "values": child.values}
            accepted.append(replace(new, id=child_id, labels=labels))
        if len(wrong) == 1:
            raise next(iter(wrong.values()))[0]
        if wrong:
            problems = tuple(Problem(where, message) for message, (_, where) in wrong.items())
            raise Invalid("; ".join(map(str, problems)), problems=problems)
        return accepted

    def job(self, id_or_alias: str) -> Job:
        return queue.get_job(self.database, id_or_alias)

    def job_of(self, kind: str, id_or_alias: str) -> Job:
        """A job of one kind; raises NotFound, also for one of another kind, as the foreign documents word it."""
        with suppress(NotFound):
            if (job := self.job(id_or_alias)).kind == kind:
                return job
        raise NotFound("Job not found")

    def children(self, id_or_alias: str) -> list[Job]:
        """The trainings that a sweep consists of; other jobs have none."""
        return queue.children(self.database, self.job(id_or_alias))

    def jobs(
        self,
        *,
        states: tuple[JobState, ...] = (),
        kind: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Newest first, at most 1,000; `before` is the last id of the page before."""
        if not 1 <= limit <= 1000:
            raise Invalid(f"limit {limit} is not between 1 and 1000")
        if kind is not None:
            kind_named(kind)
        return queue.list_jobs(self.database, states=states, kind=kind, before=before, limit=limit)

    def cancel(self, id_or_alias: str, wait_seconds: float = CANCEL_WAIT_SECONDS) -> Job:
        """Cancel a job and return the state that won. Blocks until the run is gone, or `wait_seconds` are over."""
        job = queue.request_cancel(self.database, id_or_alias)
        for each in (job, *queue.children(self.database, job)):
            if each.state is JobState.CANCELLED:
                # It did not run: nobody else removes what its earlier runs left.
                self.folder(each.id).clean(keep_checkpoints=False)
        return job if job.state.is_final else self.wait(job.id, wait_seconds)

    def pause(self, id_or_alias: str, wait_seconds: float = PAUSE_WAIT_SECONDS) -> Job:
        """Stop a job for a while, keeping its checkpoints; return the state that won. Blocks as `cancel` does.

        Raises:
            Conflict: it has ended, or is being cancelled.
        """
        job = queue.request_pause(self.database, id_or_alias)
        return self._look(job.id, lambda job: job.state is not JobState.RUNNING, wait_seconds)

    def resume(self, id_or_alias: str) -> Job:
        """Let a paused job go on from its newest checkpoint.

        Raises:
            Conflict: it has ended, or is being cancelled.
        """
        return queue.resume(self.database, id_or_alias)

    def wait(self, id_or_alias: str, seconds: float) -> Job:
        """Return the job once it has ended, or as it is after `seconds`."""
        return self._look(id_or_alias, lambda job: job.state.is_final, seconds)

    def _look(self, id_or_alias: str, is_there: Callable[[Job], bool], seconds: float) -> Job:
        deadline = time.monotonic() + seconds
        while not is_there(job := self.job(id_or_alias)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return job

    def retry(self, id_or_alias: str) -> Job:
        """Queue a failed or cancelled job's spec again, going on from its checkpoints where it left some."""
        old = self.job(id_or_alias)
        if old.state not in {JobState.FAILED, JobState.CANCELLED}:
            raise Conflict(f"job {old.id} is {old.state}; only a failed or cancelled job can be tried again")
        if children := queue.children(self.database, old):
            return self._retry_unfinished(old, children)
        job_id, left = new_id(), self.folder(old.id).checkpoints
        kept = self.folder(job_id).checkpoints
        self._hand_on(old.id, job_id)
        try:
            return self.submit(old.kind, old.spec, priority=old.priority, job_id=job_id, labels=old.labels)
        except ModelworksError:
            if kept.exists():
                kept.rename(left)
                kept.parent.rmdir()
            raise

    def _retry_unfinished(self, old: Job, children: list[Job]) -> Job:
        """Queue a job again with those of its children that did not succeed; the others stay what they are."""
        parent = replace(self._accept_again(old), id=new_id())
        again = {
            child.id: replace(self._accept_again(child), id=new_id(), labels=child.labels | {old.kind: parent.id})
            for child in children
            if child.state is not JobState.SUCCEEDED
        }
        for child_id, new in again.items():
            self._hand_on(child_id, new.id)
        ids = [again[child.id].id if child.id in again else child.id for child in children]
        parent = replace(parent, labels=old.labels | {queue.CHILDREN: list(ids)})
        return queue.insert_job(self.database, parent, list(again.values()))

    def _accept_again(self, old: Job) -> queue.NewJob:
        kind = kind_named(old.kind)
        return self._accept(kind, parse_spec(kind.spec, old.spec), old.priority)

    def _hand_on(self, job_id: str, new_id: str) -> None:
        """Let a job have the checkpoints that another left."""
        left, kept = self.folder(job_id).checkpoints, self.folder(new_id).checkpoints
        if left.exists():
            kept.parent.mkdir(parents=True)
            left.rename(kept)

    def events(self, id_or_alias: str, after: int = 0, limit: int = events.PAGE) -> list[Event]:
        """Up to `limit` events numbered above `after`."""
        return events.read(self.database, self.job(id_or_alias).id, after, min(limit, events.PAGE))

    def progress(self, job_id: str) -> Event | None:
        return events.last_of_type(self.database, job_id, EventType.PROGRESS)

    def output(self, id_or_alias: str) -> str:
        """What the job's runner printed, at most its last 2,000 lines."""
        return self.folder(self.job(id_or_alias).id).tail(2000)

    def remove(self, shelf: Shelf, name: str) -> AnyArtifact:
        """Forget an artifact, unless a job that has not ended uses it."""
        going = queue.unfinished(self.database)
        used = [str(item["id"]) for claim in going for item in claim.inputs.values() if isinstance(item, dict)]
        return self.catalog.remove(shelf, name, used)

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.settings.home / "jobs" / job_id)

    def inputs(self, kind: JobKind[Any], spec: Spec) -> dict[str, AnyArtifact]:
        """What every name in the spec means, and the base of every adapter among them, by id and by name."""
        found: dict[str, AnyArtifact] = {}
        problems: list[Problem] = []
        first: ModelworksError | None = None
        wanted = kind.names(spec)
        twice = set(wanted.get("models", ())) & set(wanted.get("datasets", ()))
        if twice:
            name = min(twice)
            raise Invalid(
                f"{name!r} names both a model and a dataset here; write the id of one (modelworks models show)"
            )
        look = {"models": self.catalog.model, "datasets": self.catalog.dataset, "rewards": self.catalog.reward_file}
        for shelf, names in wanted.items():
            for name in names:
                try:
                    found[name] = look[shelf](name)
                except (NotFound, Invalid) as error:
                    if isinstance(error, NotFound):
                        error.code = f"{shelf.removesuffix('s')}_not_found"
                    first = first or error
                    problems.append(Problem(name, error.message))
        if first is not None and len(problems) == 1:
            raise first
        if problems:
            raise NotFound("; ".join(problem.what for problem in problems), problems=tuple(problems))
        for adapter in [item for item in found.values() if isinstance(item, Adapter)]:
            base = self.catalog.base_of(adapter)
            found |= {adapter.base: base, adapter.base_name: base}
        return found

    def _needs(self, kind: JobKind[Any], spec: Spec) -> dict[str, int]:
        """Raises Unsupported for what this machine will never have: the job would wait for ever."""
        slots = self.settings.slots
        needs = kind.needs(spec, slots)
        for resource, units in needs.items():
            if slots.get(resource, 0) < units:
                has = ", ".join(f"{name}:{count}" for name, count in slots.items())
                raise Unsupported(
                    f"this {kind.name} needs {resource}:{units}, but this machine offers {has}; choose another device, "
                    "or set the slots (modelworks config show)"
                )
        return needs

    def _choose_name(self, kind: JobKind[Any], spec: Spec) -> JsonObject:
        """The spec as it is kept, with the name it will publish under."""
        dumped: JsonObject = spec.model_dump(mode="json")
        wanted, replace = kind.output_name(spec), bool(dumped.get("replace"))
        is_ours = wanted is not None and dumped["name"] is None and kind.name != "pull"
        if wanted is not None:
            # The user left the name to us: a number behind it is better than a refusal.
            dumped["name"] = self.catalog.unused_name("models", wanted) if is_ours else wanted
            spec = spec.model_copy(update={"name": dumped["name"]})
        names = _names_of(kind, spec)
        for shelf, name in names:
            self.catalog.check_free(shelf, name, replace=replace)
        for job in () if replace or is_ours else (claim.job for claim in queue.unfinished(self.database)):
            other = kind_named(job.kind)
            both = names & _names_of(other, parse_spec(other.spec, job.spec))
            if both:
                name = min(both)[1]
                raise Conflict(
                    f"job {job.id}, which is {job.state}, will publish {name!r}; wait for it, or choose another name"
                )
        return dumped


def _names_of(kind: JobKind[Any], spec: Spec) -> set[tuple[Shelf, str]]:
    """What a job will publish, by shelf."""
    name = kind.output_name(spec)
    further = {(shelf, each) for shelf, names in kind.also(spec).items() for each in names}
    return further | ({("models", name)} if name else set())
