"""Sweeps under way: a job without a run of its own, that ends when the last of its trainings has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelworks.core.nouns import AnyArtifact, EventType, Failure, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.search.outcomes import Outcome, better, metric_of, picture, ranked, table
from modelworks.search.sweep import label
from modelworks.store import catalog, events
from modelworks.store import jobs as queue
from modelworks.store.database import Database

# Points of a line in the picture.
POINTS = 200


@dataclass(frozen=True)
class Sweeps:
    """All that is known of a sweep is in the database, so whoever looks next goes on where another was killed."""

    database: Database
    home: Path
    notify: Callable[[str], None]

    def look_after(self, claim: queue.Claim) -> None:
        """Tell what is new of a running sweep, and end or pause it once nothing of it goes on."""
        job, children = claim.job, queue.children(self.database, claim.job)
        told = self._tell(job, children)
        if all(child.state.is_final for child in children):
            queue.end_job(self.database, job.id, job.runs, self._ending(job, children))
        elif job.pause_requested and all(child.state.is_final or child.state is JobState.PAUSED for child in children):
            queue.stop_run(self.database, job.id, job.runs)
        elif not told:
            return
        self.notify(job.id)

    def _tell(self, job: Job, children: Sequence[Job]) -> bool:
        """Write the events that those who ended since last time are worth, in one transaction."""
        last = events.last_of_type(self.database, job.id, EventType.PROGRESS)
        known = last.body.get("ended") if last else []
        ended = [child for child in children if child.state.is_final]
        new = [child for child in ended if not isinstance(known, list) or child.id not in known]
        if last is not None and not new:
            return False
        progress: JsonObject = {"done": len(ended), "total": len(children), "unit": "trainings"}
        progress["ended"] = [child.id for child in ended]
        lines = [self._line(child) for child in new]
        with self.database.write() as connection:
            for line in lines:
                events.tell(connection, job.id, EventType.LOG, line)
            events.tell(connection, job.id, EventType.PROGRESS, progress)
        return True

    def _line(self, child: Job) -> JsonObject:
        found = self._outcome(child)
        more = found.problem or ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
        message = f"{found.name} ({label(found.values)}) {found.state}" + (f": {more}" if more else "")
        return {"message": message, "level": "warning" if child.state is JobState.FAILED else "info"}

    def _ending(self, job: Job, children: Sequence[Job]) -> queue.Ending:
        asked = job.spec.get("sweep_metric")
        outcomes = [self._outcome(child, self._course(child)) for child in children]
        metric = metric_of(outcomes, None if asked is None else str(asked))
        ranking = ranked(outcomes, metric)
        result: JsonObject = {"name": job.spec["name"], "best": None, "table": table(ranking)}
        result["picture"] = picture(ranking)
        if metric is not None:
            result |= {"best": ranking[0].name, "metric": metric, "better": better(metric)}
            if asked not in (None, metric):
                known = sorted({name for each in outcomes for name in each.metrics})
                result["note"] = f"no training measured {asked}; measured were {', '.join(known)}"
        states = {child.state for child in children}
        if JobState.CANCELLED in states and (job.cancel_requested or states == {JobState.CANCELLED}):
            return queue.Ending(state=JobState.CANCELLED, result=result)
        if metric is None or (best := self._made(ranking[0].job_id)) is None:
            problems = tuple(f"{each.name}: {each.problem or each.state}" for each in outcomes)
            failure = Failure(
                code="sweep_failed", message=f"none of the {len(children)} trainings succeeded; {problems[0]}",
                problems=problems,
            )  # fmt: skip
            return queue.Ending(state=JobState.FAILED, result=result, failure=failure)
        alias = catalog.Alias(name=str(job.spec["name"]), artifact=best, replace=bool(job.spec.get("replace")))
        return queue.Ending(state=JobState.SUCCEEDED, result=result, alias=alias)

    def _outcome(self, child: Job, course: Sequence[tuple[float, float]] = ()) -> Outcome:
        made, values = self._made(child.id), child.labels.get("values")
        took = (
            (child.finished_at - child.started_at).total_seconds() if child.finished_at and child.started_at else None
        )
        return Outcome(
            name=made.name if made else str(child.spec["name"]), job_id=child.id, state=child.state.value,
            values=values if isinstance(values, dict) else {}, metrics=made.metrics if made else {},
            course=course, seconds=took, problem=child.error.message if child.error else "",
        )  # fmt: skip

    def _made(self, job_id: str) -> AnyArtifact | None:
        """The adapter or model that a training published; what is made of that beside it comes behind it."""
        return next(iter(catalog.made_by(self.database, self.home, job_id)), None)

    def _course(self, child: Job) -> list[tuple[float, float]]:
        told = events.sample(self.database, child.id, EventType.METRIC, POINTS)
        numbers = ((event.body.get("step"), event.body.get("loss")) for event in told)
        return [
            (step, loss) for step, loss in numbers if isinstance(step, int | float) and isinstance(loss, int | float)
        ]
