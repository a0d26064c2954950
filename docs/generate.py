"""Write docs/reference from the code: commands, settings, specs, plug-ins, routes, surfaces. Run it by `make docs`."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from fastapi import APIRouter
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import modelworks.surfaces
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
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
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
    return "\n".join([*lines, *routes_of((openai.router, jobs.router, artifacts.router, system.router))]) + "\n"


def routes_of(routers: Iterable[APIRouter]) -> list[str]:
    lines = ["| method | path | what |", "|---|---|---|"]
    for router in routers:
        for route in router.routes:
            endpoint, path = getattr(route, "endpoint", None), getattr(route, "path", "")
            told = (endpoint.__doc__ if endpoint else None) or getattr(route, "summary", None) or ""
            first = told.strip().splitlines()[:1]
            methods = " ".join(sorted(getattr(route, "methods", None) or ("WS",)))
            lines.append(f"| {methods} | `{path}` | {first[0] if first else ''} |")
    return lines


def surfaces() -> str:
    how = (
        "Every field of the five foreign documents: **supported** (means here what it means there), **translated** "
        "(has another name or form here), or **refused** (and why). "
        "All routes are on every port; the port decides only what two documents say differently: `/api/health`, `/`, "
        "and the form of an error where nothing else tells. See [the settings](settings.md), `personas`."
    )
    parts = [f"# Surfaces\n\n{how}\n"]
    for name, modules in sorted(surface_modules().items()):
        told = (modules[0].__doc__ or "").strip().splitlines()[0]
        routers = [module.router for module in modules if hasattr(module, "router")]
        parts.append("\n".join([f"## {name}\n\n{told}\n", *routes_of(routers), ""]))
        parts += [f"### {kind.__name__}\n\n{table_of(kind)}\n" for module in modules for kind in wire_models(module)]
    return "\n".join(parts)


def surface_modules() -> dict[str, list[ModuleType]]:
    """The modules of every folder of surfaces, each folder's own first; of what they share, under `shared`."""
    found: dict[str, list[ModuleType]] = {}
    place = modelworks.surfaces
    for each in pkgutil.walk_packages(place.__path__, f"{place.__name__}."):
        name = each.name.removeprefix(f"{place.__name__}.")
        if not name.endswith("__main__"):
            folder = name.split(".")[0] if "." in name or each.ispkg else "shared"
            found.setdefault(folder, []).append(importlib.import_module(each.name))
    return found


def wire_models(module: ModuleType) -> list[type[BaseModel]]:
    """The bodies that a module defines, in their order."""
    own = [kind for kind in vars(module).values() if getattr(kind, "__module__", "") == module.__name__]
    return [kind for kind in own if isinstance(kind, type) and kind.__name__.endswith(("In", "Out"))]


def table_of(kind: type[BaseModel]) -> str:
    """The fields of a body, by the names they have on the wire."""
    asked = kind.__name__.endswith("In")
    lines = (
        ["| field | type | default | here |", "|---|---|---|---|"]
        if asked
        else ["| field | type | here |", "|---|---|---|"]
    )
    schema = kind.model_json_schema()
    for name, field in kind.model_fields.items():
        properties = schema["properties"]
        shown = next(key for key in (field.serialization_alias, field.alias, name) if key in properties)
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
        cells = [f"`{shown}`", type_of(properties[shown]), *([default] if asked else []), field.description or ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    made = {
        "cli": commands,
        "settings": settings,
        "specs": specs,
        "plugins": plugged,
        "http": routes,
        "surfaces": surfaces,
    }
    return {f"{name}.md": HEAD + make() for name, make in made.items()}


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {REFERENCE}\n")


if __name__ == "__main__":
    main()
