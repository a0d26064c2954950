"""The parameters of a merge: found wrong before any work, and worked out for every tensor and model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import JsonObject
from modelworks.core.spec import parse_spec
from modelworks.merge.method import Method, Params
from modelworks.merge.schedule import resolve, schedule_problems, scheduled_names


class Settings:
    """What a spec says to a method. Problems are collected, each once."""

    def __init__(
        self,
        method: Method[Any],
        params: JsonObject,
        weights: Sequence[float] | None,
        model_params: Sequence[JsonObject] | None,
        count: int,
        problems: list[Problem],
    ) -> None:
        self.method = method
        self._params = params
        self._problems = problems
        self._scheduled = scheduled_names(method.params_type)
        self._parsed: dict[str, Params | None] = {}
        self._own: list[JsonObject] = [{} for _ in range(count)]
        fields = method.params_type.model_fields
        self._per_model = frozenset(
            name for name, field in fields.items() if (extra := field.json_schema_extra) and "per_model" in extra
        )
        if weights is not None and not method.takes_weights:
            self._tell("weights", f"{method.name} takes none", "leave them out, or use task_arithmetic")
        elif weights is not None and self._counts("weights", len(weights), count):
            self._own = [{"weight": weight} for weight in weights]
        if model_params is not None and self._counts("model_params", len(model_params), count):
            self._own = [before | own for before, own in zip(self._own, model_params, strict=True)]
        for index, own in enumerate(self._own):
            self._check_own(f"model_params.{index}", own)
        problems += schedule_problems("params", params, self._scheduled)

    def at(
        self, tensor: str, depth: float, over: JsonObject, sources: Sequence[tuple[int, JsonObject]]
    ) -> tuple[Params, tuple[Params, ...]] | None:
        """The parameters of one tensor, and those of every model on it; None if something is wrong with them.

        Args:
            over: what the tensor's slice says, over the parameters of the whole merge.
            sources: the place of each model among the spec's, and what the slice says for it.
        """
        params = self._parse((self._params, over), tensor, depth)
        each = [self._parse((self._params, over, self._own[place], own), tensor, depth) for place, own in sources]
        if params is None or any(item is None for item in each):
            return None
        held = tuple(item for item in each if item is not None)
        for problem in self.method.check_each(params, held):
            self._tell(f"params.{problem.where}", problem.what, problem.remedy)
        return params, held

    def _parse(self, layers: Sequence[JsonObject], tensor: str, depth: float) -> Params | None:
        held: JsonObject = {}
        for values in layers:  # where the filters of one all miss, the one before holds
            held |= resolve(values, self._scheduled, tensor, depth)
        key = json.dumps(held, sort_keys=True, default=str)
        if key not in self._parsed:
            self._parsed[key] = self._parsed_now(held)
        return self._parsed[key]

    def _parsed_now(self, held: JsonObject) -> Params | None:
        method = self.method
        try:
            params: Params = parse_spec(method.params_type, held)
        except Invalid as error:
            for found in error.problems:
                self._tell(f"params.{found.where}", found.what, found.remedy)
            return None
        for problem in method.check(params, len(self._own)):
            self._tell(f"params.{problem.where}", problem.what, problem.remedy)
        return params

    def _check_own(self, where: str, own: JsonObject) -> None:
        for name in sorted(own.keys() - self._per_model):
            known = ", ".join(sorted(self._per_model)) or "none"
            self._tell(f"{where}.{name}", f"is the same for all models of {self.method.name}", f"per model: {known}")
        self._problems += schedule_problems(where, own, self._scheduled)

    def _counts(self, where: str, found: int, wanted: int) -> bool:
        if found != wanted:
            self._tell(where, f"{found} {where} for {wanted} models", "give one a model, in the same order")
        return found == wanted

    def _tell(self, where: str, what: str, remedy: str) -> None:
        problem = Problem(where, what, remedy)
        if problem not in self._problems:
            self._problems.append(problem)
