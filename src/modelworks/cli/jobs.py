"""`modelworks jobs`: what was asked for, how it goes, and how to stop it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from modelworks.cli import render
from modelworks.cli.follow import event_line, raise_if_failed, sentence, stream
from modelworks.cli.options import Group, Session, pass_session
from modelworks.cli.run import see_on, waiting_options

if TYPE_CHECKING:
    from modelworks.core.nouns import Job

STATES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
LOG_LOOK_SECONDS = 0.3


@click.group(cls=Group, name="jobs", example="modelworks jobs ls --state running")
def jobs() -> None:
    """List, look at, follow, cancel, pause, resume and retry jobs."""


@jobs.command(name="ls", example="modelworks jobs ls --state failed --json")
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Only these.")
@click.option("--kind", metavar="KIND", help="Only pull, train, sweep, merge, search, evaluate or export.")
@click.option("--limit", type=int, default=100, metavar="N", show_default=True, help="At most so many, newest first.")
@click.option("--before", metavar="JOB", help="Only jobs older than this one.")
@pass_session
def list_jobs(session: Session, state: tuple[str, ...], kind: str | None, limit: int, before: str | None) -> None:
    """List jobs, newest first."""
    from modelworks.core.states import JobState

    states = tuple(JobState(each) for each in state)
    found = session.services.jobs(states=states, kind=kind, before=before, limit=limit)
    rows = [[job.id, job.kind, job.state.value, job.spec.get("name"), render.when(job.created_at)] for job in found]
    empty = "no such jobs" if states or kind or before else "no jobs yet: modelworks train --help"
    session.answers(found, ("id", "kind", "state", "makes", "created"), rows, empty=empty)
    _tell_untended(session, found)


def _tell_untended(session: Session, listed: Sequence[Job]) -> None:
    """Say so where jobs wait for somebody who looks after them."""
    from modelworks.app.presence import someone_works

    waiting = [job.id for job in listed if job.state.value in ("queued", "running")]
    if waiting and not someone_works(session.settings):
        session.say("no server looks after the jobs now, so none begins and no end is noted: modelworks serve, or")
        session.say(f"  modelworks jobs events {waiting[-1]} --follow")


@jobs.command(name="show", example="modelworks jobs show JOB --json")
@click.argument("job_id", metavar="JOB")
@pass_session
def show_job(session: Session, job_id: str) -> None:
    """Show a job: its spec, state, progress and result."""
    job = session.services.job(job_id)
    if session.json:
        render.print_json(job)
        return
    progress = None if job.state.is_final else session.services.progress(job.id)
    facts: dict[str, object] = {
        "id": job.id, "aliases": job.aliases, "kind": job.kind, "state": job.state.value, "runs": job.runs,
        "priority": job.priority or None, "created": job.created_at, "started": job.started_at,
        "finished": job.finished_at, "progress": sentence(progress) if progress else None,
    }  # fmt: skip
    if job.error is not None:
        facts |= {"error": f"{job.error.message} ({job.error.code})", "problems": "\n".join(job.error.problems)}
    result = job.result or {}
    table = render.TABLES.get(job.kind) if result else None
    facts |= {f"spec.{key}": value for key, value in job.spec.items()}
    facts |= {} if table else {f"result.{key}": value for key, value in result.items()}
    render.print_facts(facts)
    if table:
        click.echo()
        render.print_table(*table(result))
    elif children := session.services.children(job.id):
        click.echo()
        rows = [[child.id, child.state.value, child.spec["name"], child.labels.get("values")] for child in children]
        render.print_table(("id", "state", "makes", "with"), rows)
    _tell_untended(session, [job])


@jobs.command(name="logs", example="modelworks jobs logs JOB --follow")
@click.argument("job_id", metavar="JOB")
@click.option("--follow", is_flag=True, help="Go on until the job has ended.")
@pass_session
def show_logs(session: Session, job_id: str, follow: bool) -> None:
    """Print what a job's run wrote, at most its last 2,000 lines."""
    services = session.services
    job = services.job(job_id)
    if follow and not job.state.is_final:
        session.app.start_worker()
    shown = ""
    while True:
        ended = services.job(job.id).state.is_final
        text = services.output(job.id)
        _print_log(session, _new_part(shown, text))
        shown = text
        if ended or not follow:
            return
        time.sleep(LOG_LOOK_SECONDS)


def _new_part(shown: str, text: str) -> str:
    """What was added since: the log's beginning falls away once it is long."""
    last = shown[-2000:]
    position = text.rfind(last) if last else -1
    return text if position < 0 else text[position + len(last) :]


def _print_log(session: Session, text: str) -> None:
    if not session.json:
        click.echo(text, nl=bool(text) and not text.endswith("\n"))
        return
    for line in text.splitlines():
        render.print_json({"line": line})


@jobs.command(name="events", example="modelworks jobs events JOB --follow --json")
@click.argument("job_id", metavar="JOB")
@click.option("--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--after", type=int, default=0, metavar="N", help="Only events numbered above N.")
@pass_session
def show_events(session: Session, job_id: str, follow: bool, after: int) -> None:
    """Print a job's story, one event a line."""
    job = session.services.job(job_id)
    if follow and not job.state.is_final:
        session.app.start_worker()
    for event in stream(session.services, job.id, after, follow=follow):
        session.answer(event, event_line(event))
    if follow:
        raise_if_failed(session.services.job(job.id))


@jobs.command(name="cancel", example="modelworks jobs cancel JOB")
@click.argument("job_id", metavar="JOB")
@pass_session
def cancel_job(session: Session, job_id: str) -> None:
    """Cancel a job; prints the state that won."""
    # Somebody must end the run: this process, where no server is there to do it.
    session.app.start_worker()
    job = session.services.cancel(job_id)
    session.answer(job, f"{job.id}  {job.state.value}" + ("" if job.state.is_final else ", cancel requested"))


@jobs.command(name="pause", example="modelworks jobs pause JOB")
@click.argument("job_id", metavar="JOB")
@pass_session
def pause_job(session: Session, job_id: str) -> None:
    """Stop a job for a while, keeping its checkpoints; its slot is free meanwhile. Prints the state that won."""
    session.app.start_worker()
    job = session.services.pause(job_id)
    asked = ", pause requested" if job.state.value == "running" else ""
    session.answer(job, f"{job.id}  {job.state.value}{asked}")


@jobs.command(name="resume", example="modelworks jobs resume JOB --no-wait")
@click.argument("job_id", metavar="JOB")
@waiting_options
@pass_session
def resume_job(session: Session, job_id: str, wait: bool, follow: bool) -> None:
    """Let a paused job go on from its newest checkpoint."""
    job = session.services.resume(job_id)
    see_on(session, job, wait=wait, follow=follow)


@jobs.command(name="retry", example="modelworks jobs retry JOB --no-wait")
@click.argument("job_id", metavar="JOB")
@waiting_options
@pass_session
def retry_job(session: Session, job_id: str, wait: bool, follow: bool) -> None:
    """Queue a failed or cancelled job again; it goes on from its checkpoints."""
    job = session.services.retry(job_id)
    see_on(session, job, wait=wait, follow=follow)
