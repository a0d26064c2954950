"""The process of an engine that merges into its own memory: `python -m modelworks.app.live_engine FD SPEC`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelworks.core.nouns import JsonObject
from modelworks.merge.engine import Pace, merge
from modelworks.merge.memory import MemorySink
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec
from modelworks.serve.process import main
from modelworks.store.catalog import from_json
from modelworks.weights.loading import choose_device

if TYPE_CHECKING:
    from torch import Tensor


class _Unwatched:
    """Nobody stops this merge but by ending the process."""

    def check(self) -> None: ...

    def progress(self, done: float, total: float, unit: str, **facts: str | float) -> None: ...


def make(recipe: Mapping[str, Any]) -> tuple[dict[str, Tensor], JsonObject]:
    """Merge into fresh tensors.

    Args:
        recipe: `spec`, a MergeSpec, and `inputs`, what its names mean.

    Raises:
        Invalid: the models do not fit together any more, or the result is not finite.
    """
    spec = MergeSpec.model_validate(recipe["spec"])
    plan = make_plan(spec, {name: from_json(body) for name, body in recipe["inputs"].items()})
    sink = MemorySink([step.output for step in plan.steps])
    findings = merge(plan, sink, _Unwatched(), Pace(choose_device(spec.device), report=spec.report))
    return sink.tensors(), {"tensors_merged": sum(step.merged for step in plan.steps), **findings.as_json()}


if __name__ == "__main__":
    main(make)
