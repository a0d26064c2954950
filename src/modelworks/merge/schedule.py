"""Parameters that change over a model: one number, a gradient over its layers, or a choice by the tensor's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelworks.core.errors import Problem
from modelworks.core.nouns import JsonObject, JsonValue


def resolve(values: Mapping[str, JsonValue], scheduled: frozenset[str], tensor: str, depth: float) -> dict[str, Any]:
    """The values that hold for one tensor; a name whose filters all miss is left out.

    A list of numbers is a gradient: its first number holds at depth 0, its last at depth 1, those between are evenly
    spaced and joined by straight lines. A list of `{filter, value}` is a choice: the first holds whose filter is part
    of the tensor's name, is `*`, or is missing; its value may be a gradient.

    Args:
        scheduled: the names whose values may change; all others are returned as they are.
        depth: how deep in its slice of layers the tensor lies, from 0 to 1.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        held = _at(value, tensor, depth) if name in scheduled else value
        if held is not None:
            found[name] = held
    return found


def _at(value: JsonValue, tensor: str, depth: float) -> JsonValue:
    if not isinstance(value, list):
        return value
    if all(isinstance(item, dict) for item in value):
        for item in value:
            assert isinstance(item, dict)
            wanted = item.get("filter")
            if wanted in (None, "*") or str(wanted) in tensor:
                return _at(item["value"], tensor, depth)
        return None
    return _between([float(item) for item in value if isinstance(item, int | float)], depth)


def _between(points: Sequence[float], depth: float) -> float:
    if len(points) == 1:
        return points[0]
    place = depth * (len(points) - 1)
    left = min(int(place), len(points) - 2)
    share = place - left
    return (1 - share) * points[left] + share * points[left + 1]


def schedule_problems(where: str, values: Mapping[str, JsonValue], scheduled: frozenset[str]) -> Iterable[Problem]:
    """Lists that are neither a gradient nor a choice."""
    for name, value in values.items():
        if name in scheduled and (what := _fault(value)):
            yield Problem(
                f"{where}.{name}", what, "e.g. 0.5, [0, 0.5, 1], or [{filter: mlp, value: 0.2}, {value: 0.5}]"
            )


def _fault(value: JsonValue) -> str:
    if isinstance(value, dict):
        return "is a mapping, not a number, a gradient or a list of {filter, value}"
    if not isinstance(value, list):
        return ""
    if not value:
        return "is an empty list"
    if all(isinstance(item, dict) for item in value):
        wrong = [
            item for item in value if isinstance(item, dict) and not {"value"} <= item.keys() <= {"filter", "value"}
        ]
        inner = [fault for item in value if isinstance(item, dict) and (fault := _fault(item.get("value")))]
        return f"{wrong[0]} is not {{filter, value}}" if wrong else next(iter(inner), "")
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        return f"{value} is neither a gradient of numbers nor a list of {{filter, value}}"
    return ""


def depths(layers: int) -> list[float]:
    """How deep each layer of a slice lies; a single one lies at its end."""
    return [index / (layers - 1) for index in range(layers)] if layers > 1 else [1.0] * layers


def scheduled_names(params_type: Any) -> frozenset[str]:
    """The parameters that are one number or one choice, so that a list can only be meant as a schedule."""
    fields: JsonObject = params_type.model_json_schema().get("properties", {})
    return frozenset(name for name, schema in fields.items() if isinstance(schema, dict) and _is_scalar(schema))


def _is_scalar(schema: JsonObject) -> bool:
    kinds = schema.get("anyOf", [schema])
    types = {kind.get("type") for kind in kinds if isinstance(kind, dict)} if isinstance(kinds, list) else set()
    return bool(types - {"null"}) and types <= {"number", "integer", "boolean", "null"}
