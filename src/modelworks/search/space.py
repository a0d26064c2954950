"""What a search may change of a recipe: axes, each a place in the recipe and the values it may take there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelworks.core.errors import Problem
from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.merge.method import methods
from modelworks.merge.spec import MergeSpec
from modelworks.search.spec import Values

# A value for every axis, by the axis's path.
Point: TypeAlias = Mapping[str, JsonValue]
# Without a word about the space: what a method has of these. With a weight for each model, a factor on their sum
# says nothing new.
_USUAL: Mapping[str, Values] = {"density": (0.1, 1.0), "param_value_mask_rate": (0.1, 0.9), "t": (0.0, 1.0)}
_FACTORS = ("scaling_coefficient", "lambda")
_WEIGHTS = (0.0, 1.5)
_ROOTS = frozenset({"weights", "params", "model_params", "slices"})


@dataclass(frozen=True, slots=True)
class Axis:
    """One number or choice: from `low` to `high`, or one of `choices`. `start` is what the recipe says, if it does."""

    path: str
    start: JsonValue
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: Values = ()

    @property
    def ends(self) -> tuple[JsonValue, JsonValue]:
        return (self.choices[0], self.choices[-1]) if self.choices else (self.low, self.high)

    def holds(self, value: JsonValue) -> bool:
        if self.choices:
            return value in self.choices
        return _is_number(value) and self.low <= value <= self.high  # type: ignore[operator] # a number by then


def axes_of(recipe: MergeSpec, space: Mapping[str, Values], problems: list[Problem]) -> list[Axis]:
    """The axes of a space; of the usual one, widened to where the recipe stands, if nothing is said."""
    method = methods()[recipe.method]
    schema: JsonObject = method.params_type.model_json_schema().get("properties", {})
    found: dict[str, Axis] = {}
    for name, values in (space or _usual(schema)).items():
        for path in _spread(name, recipe):
            try:
                start = value_at(recipe, path, schema)
            except (KeyError, IndexError, ValueError, TypeError):
                problems.append(Problem(f"space.{name}", "is no place in the recipe", "e.g. weights, params.density"))
                break
            axis = _axis(path, start, values, schema)
            if axis is None:
                problems.append(Problem(f"space.{name}", f"{list(values)} is no range", "e.g. 0:1.5, or a,b,c"))
                break
            found[path] = axis if space else _widened(axis)
    if not found and not problems:
        problems.append(Problem("space", f"{method.name} has no weights to search", "name what to change"))
    return list(found.values())


def recipe_at(recipe: MergeSpec, point: Point) -> MergeSpec:
    """The recipe with the values of a point."""
    body = _opened(recipe)
    for path, value in point.items():
        *way, last = path.split(".")
        place: Any = body
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    # What was opened and left empty says nothing.
    if not any(body["model_params"]):
        body["model_params"] = None
    if not any(path.startswith("weights.") for path in point):
        body["weights"] = None if recipe.weights is None else list(recipe.weights)
    return MergeSpec.model_validate(body)


def value_at(recipe: MergeSpec, path: str, schema: JsonObject) -> JsonValue:
    """What the recipe says at a place, or else the method's default; raises what lists and mappings raise."""
    *way, last = path.split(".")
    place: Any = _opened(recipe)
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if isinstance(place, list):
        return place[int(last)]  # type: ignore[no-any-return] # JSON
    field = schema.get(last)
    default = field.get("default") if isinstance(field, dict) else None
    shared: JsonValue = recipe.params.get(last, default)
    if last == "weight" and recipe.weights is not None and len(way) == 2:
        shared = recipe.weights[int(way[1])]
    found: JsonValue = place.get(last, shared)
    return found


def _opened(recipe: MergeSpec) -> dict[str, Any]:
    """As JSON, with a place for every model where there may be one."""
    body = recipe.model_dump(mode="json")
    body["weights"] = body["weights"] or [1.0] * len(recipe.models)
    body["model_params"] = body["model_params"] or [{} for _ in recipe.models]
    return body


def _usual(schema: JsonObject) -> Mapping[str, Values]:
    found = {name: values for name, values in _USUAL.items() if name in schema}
    factors = {name: _WEIGHTS for name in _FACTORS if name in schema}
    normalize = schema.get("normalize")
    # Normalised weights have no length, so the factor gives it.
    if "weight" in schema and not (isinstance(normalize, dict) and normalize.get("default") is True):
        factors = {}
    return {**({"weights": _WEIGHTS} if "weight" in schema else {}), **factors, **found}


def _spread(name: str, recipe: MergeSpec) -> Iterator[str]:
    """The paths that a name of the space means: one for each model where it names none of them."""
    first, *rest = name.split(".")
    if first == "weight" and not rest:
        first = "weights"
    if first not in _ROOTS:
        first, rest = "params", [first, *rest]
    if first in {"weights", "model_params"} and not (rest and rest[0].isdigit()):
        places = [[str(place), *rest] for place in range(len(recipe.models))]
    else:
        places = [rest]
    # A model's own weight goes before the list of weights, and before the weight of all.
    owned = "weight" in recipe.params or any("weight" in own for own in recipe.model_params or ())
    for parts in places:
        if first == "weights" and owned:
            yield ".".join(["model_params", *parts, "weight"])
        else:
            yield ".".join([first, *parts])


def _axis(path: str, start: JsonValue, values: Values, schema: JsonObject) -> Axis | None:
    if len(values) == 2 and all(_is_number(value) for value in values):
        low, high = (float(str(value)) for value in values)
        field = schema.get(path.rsplit(".", 1)[-1])
        whole = isinstance(field, dict) and field.get("type") == "integer"
        return Axis(path, start, low, high, whole) if low < high else None
    if len(values) > 1 and all(isinstance(value, str | int | float | bool) for value in values):
        return Axis(path, start, choices=values)
    return None


def _widened(axis: Axis) -> Axis:
    if not _is_number(axis.start):
        return axis
    start = float(str(axis.start))
    return Axis(axis.path, axis.start, min(axis.low, start), max(axis.high, start), axis.whole)


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
