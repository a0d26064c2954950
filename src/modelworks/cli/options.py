"""What every command has: the global options, its example, and the session it runs in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from modelworks.cli import render
from modelworks.core.errors import Unsupported
from modelworks.core.registry import nearest

if TYPE_CHECKING:
    from modelworks.app.services import Services
    from modelworks.app.wiring import App
    from modelworks.core.config import Loaded, Settings

SETTING_FLAGS = ("home", "allow_paths", "server", "engine", "quantization")


@dataclass
class Session:
    """What one command line asked of every command, and the workspace, opened when first needed."""

    flags: dict[str, object] = field(default_factory=dict)
    json: bool = False
    quiet: bool = False
    verbose: int = 0

    @cached_property
    def loaded(self) -> Loaded:
        from modelworks.core.config import load_settings

        return load_settings(self.flags)

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @cached_property
    def app(self) -> App:
        """The workspace of this machine; closed when the command ends."""
        from modelworks.app.wiring import open_app

        if "server" in self.flags:
            raise Unsupported(
                f"this command works in a workspace of this machine and cannot speak to {self.flags['server']}; "
                "leave --server out, or choose a workspace with --home"
            )
        app = open_app(self.settings)
        click.get_current_context().find_root().call_on_close(app.close)
        return app

    @property
    def services(self) -> Services:
        return self.app.services

    def say(self, message: str) -> None:
        """Tell the user something that is not the data asked for."""
        if not self.quiet:
            click.echo(message, err=True)

    def answer(self, value: object, text: str) -> None:
        """Print what was asked for: `value` as JSON, or `text`."""
        click.echo(render.to_json(value) if self.json else text)

    def answers(
        self, found: Sequence[object], headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str
    ) -> None:
        """Print what was found: each as a line of JSON, or a table of `rows`; `empty` where there is nothing."""
        if self.json:
            for item in found:
                render.print_json(item)
        else:
            render.print_table(headings, rows, empty=empty)

    def start_logging(self) -> None:
        level = logging.ERROR if self.quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbose, 2)]
        # force: a second command in one process writes to the stderr of its time.
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", force=True)


def options(*added: Callable[..., Any]) -> Callable[..., Any]:
    """Several options of a command as one decorator, listed in the order given."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(added):
            command = option(command)
        return command

    return add


# Gives the session to a command as its first argument.
pass_session: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(Session)


def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put an option into the session, not into the command's arguments."""
    session = context.find_object(Session)
    if session is None or value in (None, False, 0, ()):
        return
    if parameter.name in SETTING_FLAGS:
        session.flags[parameter.name] = value
    else:
        setattr(session, str(parameter.name), value)


def global_options() -> list[click.Parameter]:
    """The options of every command; they may stand before or behind its name."""
    facts: dict[str, Any] = {"expose_value": False, "callback": keep, "is_eager": True}
    return [
        click.Option(["--home"], metavar="DIR", help="The workspace to use.  [default: see config show]", **facts),
        click.Option(
            ["--allow-path", "allow_paths"], metavar="DIR", multiple=True, help="Let names point into DIR.", **facts
        ),
        click.Option(["--server"], metavar="URL", help="Ask this server (chat, generate).", **facts),
        click.Option(["--json"], is_flag=True, help="Print JSON: one object, or one a line.", **facts),
        click.Option(["-q", "--quiet"], is_flag=True, help="No progress, no remarks.", **facts),
        click.Option(["-v", "--verbose"], count=True, help="Say more; -vv says everything.", **facts),
    ]


def _with_example(example: str | Sequence[str]) -> str:
    lines = [example] if isinstance(example, str) else list(example)
    return "\b\n" + "\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *(f"  {line}" for line in lines)])


class _Equipped(click.Command):
    """With the global options, and an example at the end of its help."""

    def __init__(self, *args: Any, example: str | Sequence[str] = (), **kwargs: Any) -> None:
        if example:
            kwargs["epilog"] = _with_example(example)
        super().__init__(*args, **kwargs)
        known = {parameter.name for parameter in self.params}
        self.params += [option for option in global_options() if option.name not in known]


class Command(_Equipped):
    """Options of several values take them one after another: `--models a b`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {
            name
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and parameter.multiple and parameter.expose_value
            for name in parameter.opts
        }
        return super().parse_args(ctx, spread(args, several))

    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.find_object(Session)
        if session is not None:
            session.start_logging()
        return super().invoke(ctx)


class Group(_Equipped, click.Group):
    """Unknown commands are answered with the nearest known one."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(f"there is no command {args[0]!r}; {nearest(args[0], known)}", ctx)
        return super().resolve_command(ctx, args)


Group.group_class = Group


def spread(args: Sequence[str], several: set[str]) -> list[str]:
    """Write `--models a b` as `--models a --models b`, for the options named in `several`."""
    spread_out: list[str] = []
    option, given = "", 0
    for position, arg in enumerate(args):
        if arg == "--":
            return spread_out + list(args[position:])
        # A number may be negative: --weights 1 -0.5
        if arg.startswith("-") and not arg[1:2].isdigit() and len(arg) > 1:
            option, given = (arg if arg in several else ""), 0
        elif option:
            given += 1
            if given > 1:
                spread_out.append(option)
        spread_out.append(arg)
    return spread_out
