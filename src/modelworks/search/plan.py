"""What can be known to be wrong before a search starts: its recipe, its space, its datasets, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import AnyArtifact, Dataset
from modelworks.evaluate import plan as evaluation
from modelworks.merge.method import methods
from modelworks.merge.plan import make_plan
from modelworks.search.space import Axis, axes_of, recipe_at
from modelworks.search.spec import SearchSpec


def check(spec: SearchSpec, inputs: Mapping[str, AnyArtifact]) -> list[Axis]:
    """Refuse what cannot work; return the axes to search along.

    Raises:
        Invalid: one Problem for each thing that is wrong, be it only at the ends of the space.
    """
    problems: list[Problem] = []
    _collect(lambda: evaluation.check(spec.measuring(), inputs), problems)
    for name in spec.datasets:
        dataset = inputs[name]
        if isinstance(dataset, Dataset) and dataset.validation_rows == 1:
            what = "holds out one row, and the best is to be judged by other rows than it is chosen by"
            problems.append(Problem("datasets", f"{name} {what}", "import it with a larger validation share"))
    _collect(lambda: make_plan(spec.recipe, inputs), problems)
    method = methods().get(spec.recipe.method)
    if method is not None and method.gives_adapter:
        problems.append(Problem("recipe.method", f"{method.name} gives an adapter", "search merges that give a model"))
    axes = axes_of(spec.recipe, spec.space, problems) if method else []
    if not problems:
        for end in (0, 1):
            recipe = recipe_at(spec.recipe, {axis.path: axis.ends[end] for axis in axes})
            _collect(partial(make_plan, recipe, inputs), problems)
    if problems:
        told = tuple(dict.fromkeys(problems))
        raise Invalid("; ".join(str(problem) for problem in told), problems=told)
    return axes


def _collect(found_by: Callable[[], object], problems: list[Problem]) -> None:
    try:
        found_by()
    except Invalid as error:
        problems += error.problems or (Problem("recipe", error.message),)
