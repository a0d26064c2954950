"""The plug-in type of this craft: how a strategy turns a request into a trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelworks.core.context import JobContext
from modelworks.core.nouns import Dataset, JsonObject, Model
from modelworks.core.registry import find_plugins
from modelworks.core.spec import Spec
from modelworks.train.spec import TrainSpec


class Params(Spec):
    """What a strategy adds to TrainSpec; each has its own type."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One training, with everything decided."""

    spec: TrainSpec
    params: Params
    model: Model
    dataset: Dataset
    job: JobContext
    device: Literal["cpu", "cuda"]
    # torch's, e.g. torch.bfloat16
    dtype: Any
    # A digest of all that must be equal for a checkpoint to be continued.
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """Ready to go: a transformers Trainer around the network, and how to measure what it has learned."""

    trainer: Any
    network: Any
    # What the rows came to: rows, tokens, truncated ...
    counts: JsonObject
    # Numbers on the held-out rows; empty if there are none.
    measure: Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Strategy:
    name: str
    params: type[Params]
    build: Callable[[Setup], Training]


def strategies() -> Mapping[str, Strategy]:
    return find_plugins("modelworks.train.strategies", Strategy)
