"""Jobs over HTTP: ask for one, or what it would take; look at it, follow its events, cancel it, try it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Path, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from modelworks.app.estimating import Estimate as TrainEstimate
from modelworks.app.estimating import estimate_training
from modelworks.app.kinds import KINDS, JobKind
from modelworks.app.merging import Estimate as MergeEstimate
from modelworks.app.merging import plan_merge
from modelworks.core.errors import NotFound
from modelworks.core.nouns import Event, Job
from modelworks.core.spec import Spec
from modelworks.core.states import JobState
from modelworks.web.dependencies import App
from modelworks.web.event_stream import Stopping, follow
from modelworks.web.waiting import cancelled, paused

router = APIRouter(prefix="/modelworks", tags=["jobs"])
JobId = Annotated[str, Path(description="id or alias of a job")]


@dataclass(frozen=True, kw_only=True)
class JobDetail(Job):
    """A job, and the newest progress it reported."""

    progress: Event | None = None


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Jobs, newest first; `next` is the `before` of the next page, absent on the last."""

    items: list[Job]
    next: str | None


@dataclass(frozen=True, kw_only=True)
class EventPage:
    """Events in order; `next` is the `after` of the next page."""

    items: list[Event]
    next: int


@dataclass(frozen=True)
class Documented:
    """Has a body documented as `spec`, but read by the service, which answers a misspelt key with the nearest one."""

    spec: type[Spec]

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self.spec.__pydantic_core_schema__)


def _submitting(kind: JobKind[Any]) -> Callable[..., Job]:
    def submit(
        spec: dict[str, Any],
        app: App,
        response: Response,
        priority: Annotated[int, Query(description="-100 to 100; higher goes first")] = 0,
        idempotency_key: Annotated[
            str | None, Header(max_length=255, description="the same key and spec give the same job")
        ] = None,
    ) -> Job:
        job = app.submit(kind.name, spec, priority=priority, idempotency_key=idempotency_key)
        response.headers["Location"] = f"{router.prefix}/jobs/{job.id}"
        return job

    # Written out: as text, which annotations are here, it could not be found again outside this function.
    submit.__annotations__["spec"] = Annotated[dict[str, Any], Documented(kind.spec), Body()]
    return submit


for _kind in KINDS.values():
    router.add_api_route(
        f"/{_kind.name}",
        _submitting(_kind),
        methods=["POST"],
        status_code=202,
        operation_id=_kind.name,
        summary=f"Queue a job: {_kind.name}",
        description=_kind.spec.__doc__,
    )


@router.get("/jobs")
def list_jobs(
    app: App,
    state: Annotated[list[JobState], Query(description="only these")] = [],  # noqa: B006  # FastAPI copies it
    kind: Annotated[str | None, Query(description=f"only these: {', '.join(KINDS)}")] = None,
    before: Annotated[str | None, Query(description="the `next` of the page before")] = None,
    limit: Annotated[int, Query(description="1 to 1000")] = 100,
) -> JobPage:
    """List jobs, newest first."""
    items = app.jobs(states=tuple(state), kind=kind, before=before, limit=limit)
    return JobPage(items=items, next=items[-1].id if len(items) == limit else None)


@router.get("/jobs/{job_id}")
def show_job(job_id: JobId, app: App) -> JobDetail:
    """Show a job with its latest progress."""
    job = app.job(job_id)
    return JobDetail(**vars(job), progress=app.progress(job.id))


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventPage,
    responses={200: {"description": "A page, or the stream.", "content": {"text/event-stream": {}}}},
)
def job_events(
    job_id: JobId,
    app: App,
    stopping: Stopping,
    after: Annotated[int, Query(ge=0, description="only events numbered above this")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="events on a page")] = 1000,
    last_event_id: Annotated[
        int | None, Header(ge=0, description="as `after`; sent by browsers that reconnect")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> EventPage | Response:
    """Return a page of events or, asked for `text/event-stream`, follow them live until the job has ended."""
    job = app.job(job_id)
    after = after if last_event_id is None else last_event_id
    if "text/event-stream" in accept:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = follow(app, job.id, after, stopping)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    items = app.events(job.id, after, limit)
    return EventPage(items=items, next=items[-1].seq if items else after)


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: JobId, app: App, stopping: Stopping) -> Job:
    """Cancel a job; answers, once its run is gone, with the state that won."""
    return await cancelled(app, job_id, stopping)


@router.post("/jobs/{job_id}/pause")
async def pause_job(job_id: JobId, app: App, stopping: Stopping) -> Job:
    """Pause a job, keeping its checkpoints; answers, once its run is gone, with the state that won."""
    return await paused(app, job_id, stopping)


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: JobId, app: App) -> Job:
    """Let a paused job go on from its newest checkpoint."""
    return app.resume(job_id)


@router.post("/jobs/{job_id}/retry", status_code=202)
def retry_job(job_id: JobId, app: App) -> Job:
    """Queue a failed or cancelled job again."""
    return app.retry(job_id)


@router.get("/jobs/{job_id}/picture", responses={200: {"content": {"image/svg+xml": {}}}}, response_class=Response)
def job_picture(job_id: JobId, app: App) -> Response:
    """Return the picture that a sweep or a search ended with, as SVG."""
    drawn = (app.job(job_id).result or {}).get("picture")
    if not drawn:
        raise NotFound(f"job {job_id} has no picture; sweeps and searches do, once they have ended")
    # A picture could hold a script: it is never run.
    policy = {"Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'"}
    return Response(str(drawn), media_type="image/svg+xml", headers=policy)


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse)
def job_log(job_id: JobId, app: App) -> str:
    """Return the end of what the job's run printed."""
    return app.output(job_id)


@router.post("/merge/plan")
def plan(spec: Annotated[dict[str, Any], Documented(KINDS["merge"].spec), Body()], app: App) -> MergeEstimate:
    """Check a merge by headers alone, and tell what it would do and take; nothing is queued or merged."""
    return plan_merge(app, spec)


@router.post("/train/estimate")
def estimate(spec: Annotated[dict[str, Any], Documented(KINDS["train"].spec), Body()], app: App) -> TrainEstimate:
    """Check a training, tokenise its rows, and tell steps, memory, disk and seconds; nothing is queued or trained."""
    return estimate_training(app, spec)
