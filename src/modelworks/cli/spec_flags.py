"""A spec as command-line options: made from its fields, read together with a YAML file."""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modelworks.cli.options import Command
from modelworks.core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class SpecCommand(Command):
    """A command whose options are the fields of a kind of job's spec; they are looked up when it is used."""

    def __init__(self, *args: Any, kind: str, positional: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind = kind
        self.positional = positional
        self._complete = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._complete:
            from modelworks.app.specs import spec_of

            fields = spec_of(self.kind).model_fields
            made = [option_of(name, field) for name, field in fields.items() if name != self.positional]
            self.params = [*made, *self.params]
            self._complete = True
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Hand the command its body: the file's keys, and over them those given as options."""
        from modelworks.app.specs import spec_of

        spec = spec_of(self.kind)
        fields, file = spec.model_fields, ctx.params.pop("spec_file", None)
        body = {} if file is None else read_spec_file(file)
        with suppress(ValueError):  # two names of one field, which the spec will refuse
            # An option goes over the same field under another name.
            body = getattr(spec, "renamed", dict)(body)
        given = {name: ctx.params.pop(name, None) for name in fields if name != self.positional}
        if self.positional is not None:
            given[self.positional] = ctx.params.pop(self.positional)
        ctx.params["body"] = body | values_of(fields, given, body)
        return super().invoke(ctx)


def option_of(name: str, field: FieldInfo) -> click.Option:
    """The option that sets a field; its value stays text, which the spec will read."""
    flag = "--" + name.replace("_", "-")
    help_text = (field.description or "").strip()
    if _is(field, bool):
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=help_text)
    flags = [flag, *([flag[:-1]] if flag.endswith("s") else [])]
    if _is(field, dict):
        return click.Option([*flags, name], multiple=True, metavar="KEY=VALUE", help=f"{help_text}; repeat for more")
    several = _is(field, tuple)
    choices = _choices(field)
    shown = "|".join([*_metavars(field), *choices]) or "TEXT"
    if not field.is_required() and field.get_default(call_default_factory=True) not in (None, (), [], ""):
        help_text += f"  [default: {_as_text(field.get_default(call_default_factory=True))}]"
    elif field.is_required():
        help_text += "  [required]"
    named = flags if several else [flag]
    return click.Option([*named, name], multiple=several, metavar=f"{shown}..." if several else shown, help=help_text)


def values_of(
    fields: Mapping[str, FieldInfo], given: Mapping[str, Any], file: Mapping[str, object]
) -> dict[str, object]:
    """What the options say, in the shapes of the fields; absent options are left out."""
    values: dict[str, object] = {}
    for name, value in given.items():
        field = fields[name]
        if value is None or value == ():
            continue
        if _is(field, dict):
            before = file.get(name)
            values[name] = (before if isinstance(before, dict) else {}) | _pairs(name, field, value)
        elif _is(field, tuple):
            values[name] = value[0] if len(value) == 1 and _is(field, str) else value
        else:
            values[name] = value
    return values


def read_spec_file(path: str) -> dict[str, object]:
    """Read a YAML (or JSON) file of one mapping; `-` is stdin.

    Raises:
        NotFound: there is no such file.
        Invalid: it is not YAML, or no mapping: with its place.
    """
    import yaml

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}; write the spec there, or give its fields as options") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read: {error}") from None
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Invalid(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise Invalid(f"{path} holds a {type(body).__name__}, not a mapping of keys to values")
    return {str(key): value for key, value in body.items()}


def _pairs(name: str, field: FieldInfo, texts: Sequence[str]) -> dict[str, object]:
    import yaml

    pairs: dict[str, object] = {}
    plain = any(typing.get_args(each) == (str, str) for each in _kinds(field))
    # YAML 1.1 reads 0:1.5 as minutes and seconds; here it is a range.
    kept = re.compile(r"[-+.\d]+:[-+.\d]+")
    for text in texts:
        for part in text.split(",") if plain else [text]:
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise Invalid(f"--{name.replace('_', '-')}: {part!r} is not KEY=VALUE")
            try:
                pairs[key.strip()] = value if plain or kept.fullmatch(value) else yaml.safe_load(value)
            except yaml.YAMLError:
                pairs[key.strip()] = value
    return pairs


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """The types a field may have, without None."""
    hint = field.annotation
    hints = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    bare = (typing.get_args(each)[0] if typing.get_origin(each) is typing.Annotated else each for each in hints)
    return tuple(each for each in bare if each is not type(None))


def _is(field: FieldInfo, kind: type[object]) -> bool:
    return any((typing.get_origin(each) or each) is kind for each in _kinds(field))


def _choices(field: FieldInfo) -> list[str]:
    return [
        str(choice)
        for each in _kinds(field)
        if typing.get_origin(each) is Literal
        for choice in typing.get_args(each)
        if choice is not None
    ]


def _metavars(field: FieldInfo) -> list[str]:
    names = {int: "N", float: "X", str: "TEXT"}
    return [names[each] for each in _kinds(field) if each in names][:1]


def _as_text(value: object) -> str:
    return " ".join(str(each) for each in value) if isinstance(value, tuple | list) else str(value)
