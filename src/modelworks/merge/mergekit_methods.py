"""mergekit's methods and their parameters, as of its version 0.1.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelworks.core.nouns import JsonValue

REQUIRED: Final = "required"


@dataclass(frozen=True, slots=True)
class Parameter:
    default: JsonValue
    # Whether each model may have its own value.
    per_model: bool = False


_WEIGHT = {"weight": Parameter(REQUIRED, per_model=True)}


def _task_vectors(*, normalize: bool = False, rescale: bool = False, **further: float) -> Mapping[str, Parameter]:
    return {
        "int8_mask": Parameter(False),
        "normalize": Parameter(normalize),
        "rescale": Parameter(rescale),
        "lambda": Parameter(1.0),
        **_WEIGHT,
        "density": Parameter(1.0, per_model=True),
        **{name: Parameter(value, per_model=True) for name, value in further.items()},
    }


KNOWN: Mapping[str, Mapping[str, Parameter]] = {
    "linear": {**_WEIGHT, "normalize": Parameter(True)},
    "slerp": {"t": Parameter(REQUIRED)},
    "nuslerp": {**_WEIGHT, "nuslerp_row_wise": Parameter(False), "nuslerp_flatten": Parameter(True)},
    "multislerp": {**_WEIGHT, "normalize_weights": Parameter(True), "eps": Parameter(1e-8)},
    "karcher": {"max_iter": Parameter(10), "tol": Parameter(1e-5)},
    "passthrough": {"scale": Parameter(None, per_model=True)},
    "task_arithmetic": _task_vectors(),
    "ties": _task_vectors(normalize=True),
    "dare_linear": _task_vectors(rescale=True),
    "dare_ties": _task_vectors(rescale=True),
    "breadcrumbs": _task_vectors(gamma=0.01),
    "breadcrumbs_ties": _task_vectors(gamma=0.01),
    "della": _task_vectors(normalize=True, rescale=True, epsilon=0.15),
    "della_linear": _task_vectors(rescale=True, epsilon=0.15),
    "sce": {"int8_mask": Parameter(False), "select_topk": Parameter(1.0)},
    "model_stock": {"filter_wise": Parameter(False)},
    "nearswap": {"t": Parameter(REQUIRED)},
    "arcee_fusion": {},
    "ram": {"epsilon": Parameter(1e-5)},
    "ramplus_tl": {"epsilon": Parameter(1e-5), "r": Parameter(0.1), "alpha": Parameter(0.2)},
}
EVERY_PARAMETER = frozenset(name for parameters in KNOWN.values() for name in parameters)
# Nothing is special about a base; one that is not among the models is added to them.
BASE_IGNORED = frozenset({"linear", "karcher", "passthrough"})
BASE_MAY_LACK = BASE_IGNORED | {"nuslerp", "multislerp"}
# The base is merged as well; of slerp it is the first.
BASE_IS_MODEL = BASE_IGNORED | {"slerp"}
# What mergekit takes and has no use for; by "", in methods not named here.
UNUSED: Mapping[str, frozenset[str]] = {
    "": frozenset({"int8_mask"}),
    "task_arithmetic": frozenset({"int8_mask", "density", "rescale"}),
}
# Ours, by method and mergekit's name, where they differ.
OUR_NAMES: Mapping[tuple[str, str], str] = {("task_arithmetic", "lambda"): "scaling_coefficient"}
