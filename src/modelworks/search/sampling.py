"""Which point to try next: a tree-structured Parzen estimator, asked anew for every trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.search.goals import Goal
from modelworks.search.space import Axis
from modelworks.search.trials import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# So many trials at random before the estimator knows enough.
RANDOM_TRIALS = 5


def suggest(axes: Sequence[Axis], goals: Sequence[Goal], trials: Sequence[Trial], seed: int) -> JsonObject:
    """The next point, which depends on nothing but what is given: a search that was killed goes on as it would have.

    Method: TPE (Bergstra et al. 2011; with several goals Ozaki et al. 2022), as the library optuna has it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=(seed * 100_003 + len(trials)) % 2**32)
    study = optuna.create_study(
        directions=["maximize" if goal.metric.better == "higher" else "minimize" for goal in goals], sampler=sampler
    )
    space = {axis.path: _distribution(axis) for axis in axes}
    for trial in trials:
        values = [goal.of(trial.measured) for goal in goals]
        inside = {axis.path: trial.point.get(axis.path, axis.start) for axis in axes}
        known = [value for value in values if value is not None]
        # What failed, or stands outside of the space as a recipe may, cannot be told.
        if len(known) == len(goals) and all(axis.holds(inside[axis.path]) for axis in axes):
            params = {axis.path: _index(axis, inside[axis.path]) for axis in axes}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, values=known))
    asked = study.ask(space).params
    return {axis.path: axis.choices[asked[axis.path]] if axis.choices else asked[axis.path] for axis in axes}


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(range(len(axis.choices)))
    return IntDistribution(int(axis.low), int(axis.high)) if axis.whole else FloatDistribution(axis.low, axis.high)


def _index(axis: Axis, value: JsonValue) -> JsonValue:
    return axis.choices.index(value) if axis.choices else value
