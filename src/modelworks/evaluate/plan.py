"""What can be known to be wrong before an evaluation starts: checked when the job is submitted, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import AnyArtifact, Dataset
from modelworks.core.registry import nearest
from modelworks.evaluate.metric import metrics
from modelworks.evaluate.spec import EvaluateSpec


def check(spec: EvaluateSpec, inputs: Mapping[str, AnyArtifact]) -> None:
    """Refuse what cannot work.

    Raises:
        Invalid: one Problem for each thing that is wrong.
    """
    problems = tuple(_problems(spec, inputs))
    if problems:
        raise Invalid("; ".join(str(problem) for problem in problems), problems=problems)


def _problems(spec: EvaluateSpec, inputs: Mapping[str, AnyArtifact]) -> Iterator[Problem]:
    for name in spec.metrics:
        if name not in metrics():
            yield Problem("metrics", f"no metric is called {name!r}", nearest(name, metrics()))
    for name in spec.models:
        if isinstance(inputs[name], Dataset):
            yield Problem("models", f"{name} is a dataset", "name models or adapters")
    for name in spec.datasets:
        dataset = inputs[name]
        if not isinstance(dataset, Dataset):
            yield Problem("datasets", f"{name} is a {dataset.kind}", "name datasets")
        elif dataset.validation_rows == 0:
            yield Problem("datasets", f"{name} holds out no rows", "import it with a validation share above 0")
    for field, names in (("models", spec.models), ("datasets", spec.datasets), ("metrics", spec.metrics)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield Problem(field, f"{', '.join(twice)} more than once", "name each once")
