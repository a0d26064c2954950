"""The plug-in type of this craft: how a metric measures one model on one dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from modelworks.core.nouns import JsonObject
from modelworks.core.registry import find_plugins
from modelworks.evaluate.spec import EvaluateSpec


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model, ready on its device, and the rows to measure it on."""

    spec: EvaluateSpec
    # a transformers causal language model in eval mode, or a PEFT model around one
    network: Any
    # where tokenizer and chat template are: that of the base for an adapter
    model_folder: Path
    dataset_folder: Path
    device: Literal["cpu", "cuda"]
    # Says the share done, 0 to 1.
    tell: Callable[[float], None]
    # Raises Cancelled when the job is to stop; to be called often.
    check: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers by column; empty if the metric does not apply to such rows."""

    values: Mapping[str, float]
    samples: tuple[JsonObject, ...] = ()


@dataclass(frozen=True)
class Metric:
    name: str
    # The columns it fills; the one of its own name is what it is about.
    columns: tuple[str, ...]
    measure: Callable[[Subject], Measured]
    better: Literal["lower", "higher"]
    # Of that column over several datasets.
    mean: Callable[[Sequence[float]], float] = fmean


def metrics() -> Mapping[str, Metric]:
    return find_plugins("modelworks.evaluate.metrics", Metric)
