"""A Spec is what somebody asks for: frozen, unknown keys refused; also the HTTP body and the YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from modelworks.core.errors import Invalid, Problem
from modelworks.core.registry import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def example(**body: JsonValue) -> ConfigDict:
    """A `model_config` that shows a body in the schema."""
    return ConfigDict(json_schema_extra={"examples": [body]})


S = TypeVar("S", bound=BaseModel)


def parse_spec(kind: type[S], body: Mapping[str, object], where: str = "") -> S:
    """Validate `body` as a `kind`, reporting every problem at once.

    Raises:
        Invalid: one Problem a field: its path, what was found, and the nearest known key for an unknown one.
    """
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        problems = tuple(_problems(kind, error.errors()))
        head = f"{where or kind.__name__}: " if where or len(problems) > 1 else ""
        raise Invalid(head + "; ".join(str(problem) for problem in problems), problems=problems) from None


def _problems(kind: type[BaseModel], details: Sequence[ErrorDetails]) -> Iterator[Problem]:
    told: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        parts = [str(part) for part in detail["loc"]]
        field = kind.model_fields.get(parts[0]) if parts else None
        # Of a field that may be one of several things, pydantic tells what is wrong with each, under a name of its own.
        # Where a discriminator has chosen one, it tells of that one alone.
        several = (
            field is not None
            and field.discriminator is None
            and get_origin(field.annotation) in (Union, UnionType)
            and sum(each is not NoneType for each in get_args(field.annotation)) > 1
        )
        told.setdefault(".".join(parts[:1] if several else parts), []).append(detail)
    for path, found in told.items():
        if found[0]["type"] == "extra_forbidden":
            yield Problem(path, "unknown key", nearest(path.rsplit(".", 1)[-1], kind.model_fields))
            continue
        what = ", or ".join(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in found))
        shown = "" if found[0]["type"] == "missing" else f", found {_short(found[0].get('input'))}"
        yield Problem(path or "value", f"{what}{shown}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
