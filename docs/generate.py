"""Write docs/reference from the code: commands, settings, specs, plug-ins and routes. Run it by `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from modelworks.api import artifacts, jobs, openai, system
from modelworks.app.kinds import KINDS
from modelworks.app.plugins import list_plugins
from modelworks.cli.main import cli
from modelworks.core.config import Settings

REFERENCE = Path(__file__).parent / "reference"
HEAD = "<!-- Written by docs/generate.py; change the code and run `make docs`. -->\n\n"


def commands() -> str:
    parts = ["# Commands\n"]

    def add(command: click.Command, path: str, parent: click.Context | None) -> None:
        # The root's settings name the help option; the contexts below inherit them.
        own = command.context_settings | {"max_content_width": 100, "terminal_width": 100}
        context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent, **own)
        parts.append(f"## {path}\n\n```\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                add(found, f"{path} {name}", context)

    add(cli, "modelworks", None)
    return "\n".join(parts)


def fields_of(kind: type[BaseModel]) -> str:
    """A table of a pydantic type's fields."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    properties: dict[str, dict[str, Any]] = kind.model_json_schema()["properties"]
    for name, field in kind.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        if field.default is PydanticUndefined and not field.is_required():
            default = "by machine" if name in {"home", "slots"} else f"`{field.get_default(call_default_factory=True)}`"
        cells = (f"`{name}`", type_of(properties[name]), default, field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def type_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(type_of(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    return str(schema.get("const", schema.get("type", "any")))


def settings() -> str:
    how = (
        "Each is a flag (`--key`, where the command has it), a variable `MODELWORKS_KEY`, a line of "
        "`./modelworks.toml` or of the user's `config.toml`, in this order. `modelworks config show --origin` tells "
        "which won. `home` is the XDG data directory by default; `slots` has a `gpu` for each that the driver lists."
    )
    return f"# Settings\n\n{how}\n\n{fields_of(Settings)}\n"


def specs() -> str:
    parts = ["# Specs\n\nWhat a job is asked with: the YAML file, the options and the HTTP body have these keys.\n"]
    parts += [f"## {name}\n\n{fields_of(kind.spec)}\n" for name, kind in sorted(KINDS.items())]
    return "\n".join(parts)


def plugged() -> str:
    parts = ["# Plug-ins\n\nOne file each; what is there is found by looking into the folder.\n"]
    for family, found in sorted(list_plugins().items()):
        parts.append(f"## {family}\n")
        for plugin in found:
            lines = [
                f"  - `{name}` ({type_of(schema)}, default `{schema.get('default')}`): {schema.get('description', '')}"
                for name, schema in (plugin.parameters or {}).get("properties", {}).items()
            ]
            facts = ", ".join(f"{key}: {value}" for key, value in plugin.facts.items() if value not in (None, []))
            about = f" ({facts})" if facts else ""
            parts.append("\n".join([f"- **{plugin.name}**: {plugin.description}{about}", *lines]))
        parts.append("")
    return "\n".join(parts)


def routes() -> str:
    lines = ["# Routes\n", "The whole description is at `/openapi.json` of a running server.\n"]
    lines += ["| method | path | what |", "|---|---|---|"]
    for router in (openai.router, jobs.router, artifacts.router, system.router):
        for route in router.routes:
            endpoint, path = getattr(route, "endpoint", None), getattr(route, "path", "")
            told = (endpoint.__doc__ if endpoint else None) or getattr(route, "summary", None) or ""
            first = told.strip().splitlines()[:1]
            methods = " ".join(sorted(getattr(route, "methods", None) or ()))
            lines.append(f"| {methods} | `{path}` | {first[0] if first else ''} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    made = {"cli": commands, "settings": settings, "specs": specs, "plugins": plugged, "http": routes}
    return {f"{name}.md": HEAD + make() for name, make in made.items()}


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {REFERENCE}\n")


if __name__ == "__main__":
    main()
