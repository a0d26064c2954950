"""The plug-in type of this craft: how a strategy turns a request into a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelworks.core.errors import Problem
from modelworks.core.nouns import Adapter, AnyArtifact, Dataset, JsonObject, Model
from modelworks.core.registry import find_plugins
from modelworks.core.spec import Spec
from modelworks.data.record import Record
from modelworks.train.shared import SharedJob
from modelworks.train.spec import TrainSpec


class Params(Spec):
    """What a strategy adds to TrainSpec; each has its own type."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The numbers of a spec that may be left to us, decided; each is called as in the spec."""

    num_train_epochs: float
    per_device_train_batch_size: int
    max_length: int
    # The peak.
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Setup(Settled):
    """One training, with everything decided."""

    spec: TrainSpec
    params: Params
    model: Model
    dataset: Dataset
    job: SharedJob
    device: Literal["cpu", "cuda"]
    # torch's, e.g. torch.bfloat16
    dtype: Any
    # A digest of all that must be equal for a checkpoint to be continued.
    fingerprint: str
    # What loads the network.
    provider: Literal["huggingface", "unsloth"]
    # What to go on from, an adapter of the model.
    start: Adapter | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """Ready to go: a transformers Trainer around the network, and how to measure what it has learned."""

    trainer: Any
    network: Any
    # What the rows came to: rows, tokens, truncated ...
    counts: JsonObject
    # Numbers on the held-out rows; empty if there are none.
    measure: Callable[[], dict[str, float]]
    # Numbers of a step to report besides the loss, as the trainer names them.
    watched: tuple[str, ...] = ()
    # Makes of the trained network what is published: an adapter, or a model.
    finish: Callable[[Any], Any] = lambda network: network


def _nothing(_spec: TrainSpec, _params: Any, _inputs: Mapping[str, AnyArtifact], _: Settled) -> Iterator[Problem]:
    return iter(())


@dataclass(frozen=True)
class Strategy:
    name: str
    params: type[Params]
    build: Callable[[Setup], Training]
    # The rows it learns from.
    learns: tuple[type[Record], ...]
    # The peak where the spec names none, by tuning; a tuning that is not here is refused.
    learning_rates: Mapping[str, float]
    # What this strategy alone can know to be wrong, before any work and without torch.
    check: Callable[[TrainSpec, Any, Mapping[str, AnyArtifact], Settled], Iterator[Problem]] = _nothing
    # Where the spec says auto.
    num_train_epochs: float = 3
    per_device_train_batch_size: int = 4


def strategies() -> Mapping[str, Strategy]:
    return find_plugins("modelworks.train.strategies", Strategy)
