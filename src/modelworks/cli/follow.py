"""Waiting for a job: its events as a progress bar, as plain lines, or one by one; then how it ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from modelworks.cli import render
from modelworks.cli.options import Session
from modelworks.core.errors import ModelworksError, Problem

if TYPE_CHECKING:
    from modelworks.app.services import Services
    from modelworks.core.nouns import Event, Job, JsonObject

LOOK_SECONDS = 0.1
# Where nobody watches a bar move, a line now and then is enough.
SECONDS_BETWEEN_LINES = 5.0
SHOWN_METRICS = ("loss", "tokens_per_second")
Tell: TypeAlias = "Callable[[Event], None]"


def wait_for(session: Session, job: Job, *, each_event: bool = False) -> Job:
    """Look after the workspace's jobs until `job` has ended. Ctrl-C leaves the job running."""
    app = session.app
    if job.state.is_final:
        return job
    app.start_worker()
    tell, running = _reporter(session, job.kind, each_event=each_event)
    try:
        with running:
            for event in stream(app.services, job.id):
                tell(event)
    except KeyboardInterrupt:
        session.say(
            f"\njob {job.id} goes on. Follow it: modelworks jobs events {job.id} --follow\n"
            f"Cancel it: modelworks jobs cancel {job.id}"
        )
        raise
    return app.services.job(job.id)


def stream(services: Services, job_id: str, after: int = 0, *, follow: bool = True) -> Iterator[Event]:
    """Yield every event numbered above `after`; with `follow`, until the job has ended."""
    while True:
        job = services.job(job_id)
        page = services.events(job_id, after)
        yield from page
        if page:
            after = page[-1].seq
        elif job.state.is_final or not follow:
            return
        else:
            time.sleep(LOOK_SECONDS)


def raise_if_failed(job: Job) -> None:
    """Raise what the job failed of; a cancelled job is a failure to whoever waited for it."""
    if job.error is not None:
        problems = tuple(Problem(*text.partition(": ")[::2]) for text in job.error.problems)
        error = ModelworksError(f"job {job.id} failed: {job.error.message}", problems=problems)
        error.code = job.error.code
        raise error
    if job.state.value == "cancelled":
        error = ModelworksError(f"job {job.id} was cancelled")
        error.code = "cancelled"
        raise error


def event_line(event: Event) -> str:
    moment = event.at.astimezone().strftime("%H:%M:%S")
    return f"{event.seq:>5}  {moment}  {event.type.value:<8}  {sentence(event)}"


def sentence(event: Event) -> str:
    """What an event says, in a line."""
    body = dict(event.body)
    match event.type.value:
        case "log":
            return f"{body.get('message')}"
        case "state":
            reason = f": {body['reason']}" if "reason" in body else ""
            run = f", run {body['run']}" if body.get("run", 1) != 1 else ""
            return f"{body.get('state')}{run}{reason}"
        case "artifact":
            return f"published {body.get('name')} ({render.size(_int(body.get('size_bytes')))})"
        case "progress":
            return _progress(body)
        case _:
            return render.text_of(body)


def _progress(body: dict[str, Any]) -> str:
    stage = f"{body['stage']} " if body.get("stage") else ""
    left = body.get("eta_seconds")
    eta = f", {render.duration(left)} left" if isinstance(left, int | float) else ""
    return f"{stage}{_count(body, ' of ')}{eta}"


def _count(body: dict[str, Any], between: str) -> str:
    if body["unit"] == "bytes":
        return between.join(render.size(round(body[key])) for key in ("done", "total"))
    return f"{between.join(render.text_of(body[key]) for key in ('done', 'total'))} {body['unit']}"


@contextmanager
def show_progress(session: Session, kind: str) -> Iterator[Callable[[JsonObject], None]]:
    """Show how far work of this process is, as if it were a job's."""
    from modelworks.core.clock import now
    from modelworks.core.nouns import Event, EventType

    tell, running = _reporter(session, kind, each_event=False)
    with running:
        yield lambda body: tell(Event(job_id="", seq=0, at=now(), type=EventType.PROGRESS, body=body))


def _reporter(session: Session, kind: str, *, each_event: bool) -> tuple[Tell, AbstractContextManager[object]]:
    if each_event:
        # Every event is data here, so it goes to stdout.
        return lambda event: session.answer(event, event_line(event)), nullcontext()
    if session.quiet:
        return lambda _event: None, nullcontext()
    if sys.stderr.isatty():
        bar = _Bar(kind)
        return bar.tell, bar.progress
    return _Lines(kind).tell, nullcontext()


class _Lines:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.told_at = 0.0
        self.stage: object = None
        self.metrics: dict[str, Any] = {}

    def tell(self, event: Event) -> None:
        if event.type.value == "metric":
            self.metrics = dict(event.body)
            return
        if event.type.value == "progress" and not self._is_time(event.body):
            return
        extra = _metrics(self.metrics) if event.type.value == "progress" else ""
        click.echo(f"{self.kind}: {sentence(event)}{extra}", err=True)

    def _is_time(self, body: dict[str, Any]) -> bool:
        now = time.monotonic()
        is_news = body.get("stage") != self.stage or body["done"] >= body["total"]
        if not is_news and now - self.told_at < SECONDS_BETWEEN_LINES:
            return False
        self.stage, self.told_at = body.get("stage"), now
        return True


class _Bar:
    def __init__(self, kind: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.kind = kind
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[extra]}"),
            console=render.console(sys.stderr),
        )
        self.task = self.progress.add_task(f"{kind}: queued", total=None, count="", extra="")
        self.stage = ""

    def tell(self, event: Event) -> None:
        body: dict[str, Any] = dict(event.body)
        match event.type.value:
            case "progress":
                stage = str(body.get("stage") or self.kind)
                if stage != self.stage:
                    self.stage = stage
                    # A new stage is a new measure of time.
                    self.progress.reset(self.task, total=body["total"])
                facts = {"completed": body["done"], "total": body["total"], "count": _count(body, "/")}
                self.progress.update(self.task, description=stage, **facts)
            case "metric":
                self.progress.update(self.task, extra=_metrics(body).removeprefix(", "))
            case "state" if body.get("state") == "running" and not body.get("reason"):
                self.progress.update(self.task, description=f"{self.kind}: starting")
            case "state" if body.get("state") != "queued" and not body.get("reason"):
                pass
            case _:
                self.progress.console.print(f"{self.kind}: {sentence(event)}", markup=False, style="dim")


def _metrics(body: dict[str, Any]) -> str:
    known = [(key, body[key]) for key in SHOWN_METRICS if isinstance(body.get(key), int | float)]
    return "".join(f", {key.replace('_', ' ')} {value:.4g}" for key, value in known)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
