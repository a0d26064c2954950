"""`serve`, `doctor` and `config`: the server, the machine and the settings."""

from __future__ import annotations

import os
from typing import Any

import click

from modelworks.cli import render
from modelworks.cli.options import Command, Group, Session, pass_session


@click.command(
    cls=Command, name="serve", short_help="Serve models and jobs over HTTP.",
    example=("modelworks serve", "modelworks serve --personas", "modelworks serve --host 0.0.0.0 --api-key SECRET"),
)  # fmt: skip
@click.option("--host", help="Address to listen on; any other than loopback needs an API key.  [default: 127.0.0.1]")
@click.option("--port", type=int, metavar="N", help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option("--api-key", metavar="KEY", help="Key that clients must send; better kept in MODELWORKS_API_KEY.")
@click.option("--insecure-no-auth", is_flag=True, default=None, help="Listen beyond loopback without a key.")
@click.option(
    "--allowed-host", "allowed_hosts", metavar="HOST", multiple=True, help="A further Host name to answer to."
)
@click.option(
    "--allowed-origin", "allowed_origins", metavar="URL", multiple=True, help="A web origin that may call us."
)
@click.option("--personas", is_flag=True, default=None, help="Also listen on 5000 and 9999 for the foreign clients.")
@click.option("--strict-ports", is_flag=True, default=None, help="With --personas: end if one of the ports is taken.")
@click.option(
    "--cors-origin", type=click.Choice(["null"]), help="null: let pages opened as files call the SLM API's inference."
)
@click.option(
    "--entries", metavar="DIR", type=click.Path(), help="Folder with config.json and a models package of own entries."
)
@click.option("--engine", metavar="NAME", help="auto, native, vllm, openvino or llama_server.  [default: auto]")
@click.option("--quantization", type=click.Choice(["none", "int8"]), help="Weights in a byte each.  [default: none]")
@click.option("--max-sequences", type=int, metavar="N", help="Requests an engine decodes together.  [default: 32]")
@click.option(
    "--keep-alive", metavar="TIME", help="How long an idle model stays: 90s, 10m, 1h; -1 for good.  [default: -1]"
)
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [default: info]")
@pass_session
def serve(session: Session, **given: Any) -> int:
    """Serve models and jobs over HTTP until Ctrl-C. With --json, prints its address as soon as it listens."""
    from modelworks.app.presence import running_server
    from modelworks.server import run

    session.flags |= {key: value for key, value in given.items() if value not in (None, ())}
    if session.verbose:
        session.flags.setdefault("log_level", "debug")
    settings = session.settings
    session.app.check_engine()

    def say(text: str) -> None:
        server = running_server(settings)
        if server is None or server.pid != os.getpid():
            click.echo(text, err=True)
            return
        if session.json:
            render.print_json(server)
        session.say(text)

    return run.serve(session.app, settings, say)


@click.command(cls=Command, name="doctor", short_help="Look at this machine.", example="modelworks doctor --json")
@pass_session
def doctor(session: Session) -> int:
    """Look at everything Modelworks depends on; say how to mend what is not well. Exit code 1 if anything is not."""
    from rich.text import Text

    from modelworks.app.doctor import examine

    checks = examine(session.settings)
    for check in checks:
        if session.json:
            render.print_json(check)
            continue
        line = Text.assemble(
            ("ok  " if check.ok else "BAD ", "green" if check.ok else "bold red"), f"{check.name:<11} "
        )
        render.show(line.append(check.found))
        if check.remedy:
            click.echo(f"                {check.remedy}")
    return 0 if all(check.ok for check in checks) else 1


@click.group(cls=Group, name="config", example="modelworks config show --origin")
def config() -> None:
    """Show settings and where they come from."""


@config.command(name="show", example="modelworks config show --origin")
@click.option("--origin", is_flag=True, help="Say which source won: a flag, a variable, a file or the default.")
@pass_session
def show_config(session: Session, origin: bool) -> None:
    """Show every setting. Keys are never shown."""
    loaded = session.loaded
    values = loaded.settings.model_dump(mode="json")
    if session.json:
        with_origin = {key: {"value": values[key], "origin": loaded.origins[key]} for key in values}
        render.print_json(with_origin if origin else values)
        return
    rows = [[key, _shown(values[key]), *([loaded.origins[key]] if origin else [])] for key in values]
    render.print_table(("setting", "value", *(["from"] if origin else [])), rows)


def _shown(value: object) -> str:
    return "-" if value in (None, [], {}) else str(value) if isinstance(value, int) else render.text_of(value)
