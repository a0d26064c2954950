"""What can be plugged in, with the parameters of each: forms, help and documentation are made from it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.core.spec import Spec
from modelworks.data.format import formats
from modelworks.evaluate.metric import metrics
from modelworks.merge.method import methods
from modelworks.train.strategy import strategies


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One plug-in: what it does, what is peculiar to it, and the JSON schema of its parameters, if it has any."""

    name: str
    description: str
    facts: JsonObject
    parameters: dict[str, Any] | None


def list_plugins() -> dict[str, list[PluginInfo]]:
    """Every plug-in that a spec can name, by the kind of plug-in."""
    return {
        "strategies": [_info(each.name, each.build, each.params) for each in strategies().values()],
        "methods": [
            _info(
                each.name, next(filter(None, (each.combine, each.prepare, each.prepare_model, each.factor))),
                each.params_type,
                needs_base=each.needs_base, takes_weights=each.takes_weights, paper=each.paper,
            )
            for each in methods().values()
        ],
        "metrics": [
            _info(each.name, each.measure, columns=list(each.columns), better=each.better)
            for each in metrics().values()
        ],
        "formats": [
            _info(each.name, each.convert, columns=list(each.needs), optional_columns=list(each.optional))
            for each in formats().values()
        ],
    }  # fmt: skip


def _info(name: str, does: object, params: type[Spec] | None = None, **facts: JsonValue) -> PluginInfo:
    # A plug-in is one file whose first line says what it is.
    said = (sys.modules[does.__module__].__doc__ or "").strip().partition("\n")[0]
    schema = params.model_json_schema() if params is not None else None
    return PluginInfo(name=name, description=said, facts=facts, parameters=schema)
