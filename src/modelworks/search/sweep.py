"""A sweep: one training for each combination of values, measured against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeAlias

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from modelworks.core.nouns import JsonObject
from modelworks.core.spec import example
from modelworks.train.aliases import in_our_words
from modelworks.train.spec import TrainSpec

MOST_CHILDREN = 64
_PARAMS = "params."
# Each training has its own, made from the sweep's.
_NOT_SWEPT = ("name", "replace", "output_dir")
_OWN = {"sweep", "sweep_metric"}

Point: TypeAlias = Mapping[str, Any]


class SweepSpec(TrainSpec):
    """Train once for each combination of the values under `sweep`; the sweep's name then means the best result."""

    model_config = example(
        model="smollm2-135m", dataset="mine", name="me/best", sweep={"learning_rate": [1e-4, 2e-4], "lora_r": [8, 16]}
    )

    sweep: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        validate_default=True,
        description="train once for each combination of these values, e.g. lr=1e-4,2e-4 lora_r=8,16 params.beta=0.1,1",
    )
    sweep_metric: str | None = Field(
        None,
        description="what the best of a sweep is chosen by; by default the loss on held-out rows, else in training",
    )

    @field_validator("sweep", mode="before")
    @classmethod
    def _values(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise ValueError("give it as FIELD: [VALUES]")
        ours = in_our_words({str(field): _listed(values) for field, values in given.items()})
        # In the order they were named.
        swept = {field: ours[field] for each in given for field in in_our_words({str(each): ()})}
        if forbidden := sorted({*_NOT_SWEPT, *_OWN} & swept.keys()):
            raise ValueError(f"{', '.join(forbidden)} cannot be swept")
        if empty := [field for field, values in swept.items() if not values]:
            raise ValueError(f"{', '.join(empty)} has no values")
        if not swept:
            raise ValueError("name at least one field and its values, e.g. learning_rate: [1e-4, 2e-4]")
        if (count := prod(map(len, swept.values()))) > MOST_CHILDREN:
            raise ValueError(f"these are {count} trainings; a sweep may have {MOST_CHILDREN}, so name fewer values")
        return swept

    @model_validator(mode="wrap")
    @classmethod
    def _every_child(cls, body: Any, parse: Callable[[Any], SweepSpec]) -> SweepSpec:
        """Parse every training as well, so that all that is wrong is told at once."""
        found: dict[str, InitErrorDetails] = {}
        points: list[Point] = []
        plain: dict[str, Any] = {}
        if isinstance(body, Mapping):
            body = in_our_words(body)
            plain = {field: value for field, value in body.items() if field not in _OWN}
            with suppress(TypeError, ValueError):  # told by `parse`
                points = list(_points(cls._values(body.get("sweep"))))
                # What is required may be named in the sweep alone.
                body = {field: points[0][field] for field in ("model", "dataset") if field in points[0]} | body
        try:
            spec = parse(body)
        except ValidationError as error:
            found |= _details(error)
        seen: dict[str, Point] = {}
        for point in points:
            try:
                child = TrainSpec.model_validate(_at(plain, point)).model_dump_json()
            except ValidationError as error:
                found |= _details(error)
                continue
            if child in seen:
                twice = PydanticCustomError(
                    "same_twice", f"{label(seen[child])} and {label(point)} are the same training"
                )
                found[child] = InitErrorDetails(type=twice, loc=("sweep",), input=dict(point))
            seen.setdefault(child, point)
        if found:
            raise ValidationError.from_exception_data(cls.__name__, list(found.values()))
        return spec


@dataclass(frozen=True)
class Child:
    """One training of a sweep: the swept values as they were read, and its spec."""

    values: JsonObject
    spec: TrainSpec

    @property
    def label(self) -> str:
        return label(self.values)


def children(spec: SweepSpec, name: str) -> list[Child]:
    """Every training of a sweep that is to be called `name`, the last field changing fastest."""
    plain = spec.model_dump(mode="json", exclude=_OWN, exclude_unset=True)
    found = []
    for number, point in enumerate(_points(spec.sweep), start=1):
        child = TrainSpec.model_validate(_at(plain, point) | {"name": f"{name}-{number}"})
        dumped = child.model_dump(mode="json")
        values = {
            field: dumped["params"][field.removeprefix(_PARAMS)] if field.startswith(_PARAMS) else dumped[field]
            for field in point
        }
        found.append(Child(values, child))
    return found


def label(values: Point) -> str:
    """The values of a training in a few words: `learning_rate=0.0001, lora_r=8`."""
    return ", ".join(f"{field}={value}" for field, value in values.items())


def _listed(values: Any) -> tuple[Any, ...]:
    """Values as a list, as words between commas, or as a single one."""
    if isinstance(values, str):
        return tuple(part.strip() for part in values.split(",") if part.strip())
    return tuple(values) if isinstance(values, list | tuple) else () if values is None else (values,)


def _points(sweep: Mapping[str, tuple[Any, ...]]) -> Iterator[Point]:
    return (dict(zip(sweep, values, strict=True)) for values in product(*sweep.values()))


def _at(body: Mapping[str, Any], point: Point) -> dict[str, Any]:
    fields = {field: value for field, value in point.items() if not field.startswith(_PARAMS)}
    params = {field.removeprefix(_PARAMS): value for field, value in point.items() if field.startswith(_PARAMS)}
    given = body.get("params")
    return {**body, **fields} | (
        {"params": {**(given if isinstance(given, Mapping) else {}), **params}} if params else {}
    )


def _details(error: ValidationError) -> dict[str, InitErrorDetails]:
    """What is wrong, each once however many trainings it is wrong in."""
    found = {}
    for each in error.errors():
        what = "" if each["type"] in ("missing", "extra_forbidden") else f"{each['msg']} {each['input']!r}"
        found[f"{each['loc']} {what}"] = InitErrorDetails(
            type=each["type"], loc=each["loc"], input=each["input"], ctx=each.get("ctx", {})
        )
    return found
