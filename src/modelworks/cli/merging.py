"""`modelworks merge`: merge models into one, as a job or straight into a folder; further words are its subcommands."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from modelworks.cli import render
from modelworks.cli.follow import show_progress
from modelworks.cli.options import Group, Session, options, pass_session
from modelworks.cli.run import queueing_options, spec_file, submit, waiting_options
from modelworks.cli.spec_flags import SpecCommand
from modelworks.core.collecting import without_collecting
from modelworks.core.errors import Cancelled

if TYPE_CHECKING:
    from modelworks.app.folder_merging import FolderMerge


class MergeCommand(SpecCommand, Group):
    """`merge` itself, unless its first word is one of its subcommands."""

    allow_interspersed_args = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, invoke_without_command=True, subcommand_metavar="", **kwargs)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        command = self.commands.get(args[0]) if args else None
        if command is None:
            with without_collecting():
                return super().make_context(info_name, args, parent, **extra)
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


# The options of a merge that needs no workspace.
folder_options = options(
    click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
                 help="Merge folders, models of the hub's cache or of the workspace into a folder, here and now."),
    click.option("--dry-run", is_flag=True, help="Check, and tell what would be done; merge nothing."),
    click.option("--overwrite", is_flag=True, help="With --out: replace a model that is there."),
    click.option("--workers", type=click.IntRange(min=1), metavar="N", help="With --out; default: one a core."),
)  # fmt: skip


@click.command(
    cls=MergeCommand, kind="merge", name="merge", short_help="Merge models into one.",
    example=(
        "modelworks merge spec.yaml",
        "modelworks merge --method task_arithmetic --base smollm2-135m --models mine/a mine/b --name mine/both",
        "modelworks merge mergekit.yml --out ./merged",
    ),
)  # fmt: skip
@spec_file
@folder_options
@queueing_options
@waiting_options
@pass_session
def merge(
    session: Session,
    body: dict[str, object],
    out: Path | None,
    dry_run: bool,
    overwrite: bool,
    workers: int | None,
    **asked: Any,
) -> None:
    """Merge models of one architecture into one: as a job of the workspace or, with --out, into a folder.

    SPEC.yaml is a merge's spec or mergekit's file. Options go over what the file says.
    """
    with without_collecting():
        from modelworks.app import folder_merging

    if out is None and not dry_run:
        told, notes = folder_merging.read_merge(body)
        _say(session, notes)
        submit(session, "merge", dict(told), **asked)
        return
    started = time.monotonic()
    with without_collecting():
        planned = folder_merging.plan_folders(body, session.settings, workers or 0)
    _say(session, planned.estimate.notes)
    if dry_run or out is None:
        _print_plan(session, planned)
        return
    with _interruptible() as stopped, show_progress(session, "merge") as progress:
        result = folder_merging.merge_folders(
            planned, out, progress, stopped, workers=workers or 0, overwrite=overwrite
        )
    _say(session, cast("list[str]", result["doubts"]))
    if session.json:
        render.print_json(result)
    else:
        click.echo(f"{out}  made in {render.duration(time.monotonic() - started)}")
        click.echo(
            f"  {render.text_of({key: result[key] for key in ('method', 'tensors', 'tensors_merged', 'bytes')})}"
        )


def _say(session: Session, notes: Iterable[str]) -> None:
    for note in notes:
        session.say(f"note: {note}")


def _print_plan(session: Session, planned: FolderMerge) -> None:
    from dataclasses import asdict

    facts = asdict(planned.estimate)
    if session.json:
        render.print_json(facts)
        return
    sizes = {key: render.size(facts[key]) for key in ("bytes_read", "bytes_written", "memory_bytes")}
    render.print_facts(facts | sizes | {"seconds": f"about {facts['seconds']}", "notes": None})


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end a merge between two pieces, so that it can clean up; a second one ends it at once."""
    stop = threading.Event()

    def interrupted(_signal: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop.is_set
    except Cancelled:
        raise click.Abort from None
    finally:
        signal.signal(signal.SIGINT, before)
