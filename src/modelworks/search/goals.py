"""What a search wants: metrics, each over its datasets; and which trials come nearest to that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from modelworks.evaluate.metric import Metric, metrics
from modelworks.search.spec import SearchSpec
from modelworks.search.trials import Trial

# Numbers by dataset and column.
Measures: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One metric, over these datasets together."""

    metric: Metric
    datasets: tuple[str, ...]
    label: str

    def of(self, measured: Measures) -> float | None:
        """The mean over the datasets to which the metric applies; None if one is not finite, or there is none."""
        found = [measured[name][self.metric.name] for name in self.datasets
                 if self.metric.name in measured.get(name, {})]  # fmt: skip
        if not found or not all(map(math.isfinite, found)):
            return None
        return self.metric.mean(found) if len(found) > 1 else found[0]

    def loss(self, measured: Measures) -> float:
        """Lower is better; infinite for a trial that failed."""
        value = self.of(measured)
        return math.inf if value is None else -value if self.metric.better == "higher" else value


def goals_of(spec: SearchSpec) -> list[Goal]:
    """One a metric; one a metric and dataset if each dataset is to count for itself."""
    chosen = [metrics()[name] for name in spec.metrics]
    if not spec.each_dataset or len(spec.datasets) == 1:
        return [Goal(metric, spec.datasets, metric.name) for metric in chosen]
    return [Goal(metric, (name,), f"{metric.name} on {name}") for metric in chosen for name in spec.datasets]


def front(goals: Sequence[Goal], trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other beats: not worse in every goal and better in one. Of equals, the earliest."""
    losses = {trial.number: tuple(goal.loss(trial.measured) for goal in goals) for trial in trials}
    found = []
    for trial in trials:
        own = losses[trial.number]
        beaten = any(
            all(theirs <= ours for theirs, ours in zip(losses[other.number], own, strict=True))
            and (losses[other.number] != own or other.number < trial.number)
            for other in trials
            if other.number != trial.number
        )
        if not beaten and all(map(math.isfinite, own)):
            found.append(trial)
    return found


def ranked(goals: Sequence[Goal], trials: Sequence[Trial]) -> list[Trial]:
    """Best first. With several goals: the front before the others, each by how far it stays behind.

    The first is never worse than trial 0, the recipe itself, in any goal.
    """
    ahead = {trial.number for trial in front(goals, trials)}
    start = [goal.loss(trials[0].measured) for goal in goals]
    losses = {trial.number: [goal.loss(trial.measured) for goal in goals] for trial in trials}
    known = [own for number, own in losses.items() if number in ahead]
    low = [min(each) for each in zip(*known, strict=True)]
    high = [max(each) for each in zip(*known, strict=True)]

    def place(trial: Trial) -> tuple[bool, bool, float, int]:
        own = losses[trial.number]
        worse = any(ours > theirs for ours, theirs in zip(own, start, strict=True))
        # The sum of how far it stays behind the best in each goal, in widths of the front.
        far = sum((x - a) / (b - a or 1.0) for x, a, b in zip(own, low, high, strict=True)) if known else 0.0
        return trial.number not in ahead, worse, far, trial.number

    return sorted(trials, key=place)
