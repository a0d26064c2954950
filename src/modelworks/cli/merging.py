"""`modelworks merge`: merge models into one, as a job; further words are its subcommands."""

from __future__ import annotations

from typing import Any

import click

from modelworks.cli.options import Group, Session, pass_session
from modelworks.cli.run import queueing_options, spec_file, submit, waiting_options
from modelworks.cli.spec_flags import SpecCommand


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
            return super().make_context(info_name, args, parent, **extra)
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@click.command(
    cls=MergeCommand, kind="merge", name="merge", short_help="Merge models into one.",
    example=(
        "modelworks merge spec.yaml",
        "modelworks merge --method task_arithmetic --base smollm2-135m --models mine/a mine/b --name mine/both",
    ),
)  # fmt: skip
@spec_file
@queueing_options
@waiting_options
@pass_session
def merge(session: Session, body: dict[str, object], **asked: Any) -> None:
    """Merge models of one architecture into one. Options go over what the file says."""
    submit(session, "merge", body, **asked)
