"""A Spec is what somebody asks for: frozen, unknown keys refused; also the HTTP body and the YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from modelworks.core.errors import Invalid, Problem
from modelworks.core.registry import nearest


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


S = TypeVar("S", bound=BaseModel)


def parse_spec(kind: type[S], body: Mapping[str, object], where: str = "") -> S:
    """Validate `body` as a `kind`, reporting every problem at once.

    Raises:
        Invalid: one Problem a field: its path, what was found, and the nearest known key for an unknown one.
    """
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        problems = tuple(_problem(kind, dict(detail)) for detail in error.errors())
        head = f"{where or kind.__name__}: " if where or len(problems) > 1 else ""
        raise Invalid(head + "; ".join(str(problem) for problem in problems), problems=problems) from None


def _problem(kind: type[BaseModel], detail: dict[str, object]) -> Problem:
    location = detail["loc"]
    path = ".".join(str(part) for part in location) if isinstance(location, tuple) else str(location)
    if detail["type"] == "extra_forbidden":
        return Problem(path, "unknown key", nearest(path.rsplit(".", 1)[-1], kind.model_fields))
    found = detail.get("input")
    shown = "" if detail["type"] == "missing" else f", found {_short(found)}"
    return Problem(path or "value", f"{detail['msg']}{shown}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
