"""The kinds of job: for each its spec, what its names mean, its check before it is accepted, and its craft."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from modelworks.core.context import JobContext
from modelworks.core.errors import Unsupported
from modelworks.core.nouns import AnyArtifact, JsonObject
from modelworks.core.registry import choose
from modelworks.core.spec import Spec
from modelworks.evaluate.spec import EvaluateSpec
from modelworks.merge.spec import MergeSpec
from modelworks.search.spec import SearchSpec
from modelworks.search.sweep import Child, SweepSpec, children
from modelworks.train.rewards import files_named
from modelworks.train.spec import TrainSpec
from modelworks.weights import export, pull

if TYPE_CHECKING:
    from modelworks.app.catalog import Shelf  # noqa: TC004  a dataclass does not evaluate it, and it brings SQL along

S = TypeVar("S", bound=Spec)
Inputs = Mapping[str, AnyArtifact]


@dataclass(frozen=True, kw_only=True)
class JobKind(Generic[S]):
    name: str
    spec: type[S]
    run: Callable[[S, JobContext], JsonObject]
    # The names in the spec, by shelf: "models" or "datasets".
    names: Callable[[S], Mapping[str, tuple[str, ...]]] = lambda _spec: {}
    # Raises Invalid with every problem at once, before any work.
    check: Callable[[S, Inputs], object] = lambda _spec, _inputs: None
    # Slots, by resource: what the spec asks for, given what this machine has.
    needs: Callable[[S, Mapping[str, int]], dict[str, int]]
    # What the job will publish under, if anything; a spec without a name gets this one.
    output_name: Callable[[S], str | None] = lambda _spec: None
    # Room on the disk, in bytes, beyond a reserve.
    space: Callable[[S, Inputs], int] = lambda _spec, _inputs: 0
    # Further names it will publish under, by shelf.
    also: Callable[[S], Mapping[Shelf, tuple[str, ...]]] = lambda _spec: {}
    # What the spec leaves to us, decided: it is kept with the job.
    settle: Callable[[S, Inputs], JsonObject] = lambda _spec, _inputs: {}
    # The trainings that such a job, called so, consists of; it has no run of its own then.
    children: Callable[[S, str], Sequence[Child]] = lambda _spec, _name: ()


def _later(place: str) -> Callable[..., Any]:
    """A function of a craft, imported when it is called: who only looks at jobs does not wait for the crafts."""
    return lambda *given: pkgutil.resolve_name(f"modelworks.{place}")(*given)


def _settle_train(spec: TrainSpec, inputs: Inputs) -> JsonObject:
    from modelworks.train.plan import adapter_to_go_on_from, chosen_inputs, lora_of, settle

    start = adapter_to_go_on_from(spec, inputs)
    return asdict(settle(spec, chosen_inputs(spec, inputs)[0])) | (lora_of(start) if start else {})


def _space_to_train(spec: TrainSpec, inputs: Inputs) -> int:
    from modelworks.train.footprint import disk_bytes
    from modelworks.train.plan import chosen_inputs

    return disk_bytes(spec, chosen_inputs(spec, inputs)[0])


def _also_trained(spec: TrainSpec) -> Mapping[Shelf, tuple[str, ...]]:
    merged, file = spec.merge and spec.tuning == "lora", spec.export_gguf is not None
    return {"models": (spec.merged_name,) * merged, "files": (spec.gguf_name,) * file}


def _run_sweep(_spec: SweepSpec, _job: JobContext) -> JsonObject:
    raise Unsupported("a sweep has no run of its own; its trainings have")


def _compute(spec: TrainSpec | MergeSpec | EvaluateSpec, slots: Mapping[str, int]) -> dict[str, int]:
    on_gpu = spec.device == "cuda" or (spec.device == "auto" and slots.get("gpu", 0) > 0)
    return {"gpu": getattr(spec, "num_processes", 1)} if on_gpu else {"cpu": 1}


# Any: each kind takes its own spec, and mypy cannot pair a name with a type.
KINDS: Mapping[str, JobKind[Any]] = {
    kind.name: kind
    for kind in (
        JobKind(
            name="train",
            spec=TrainSpec,
            names=lambda spec: {
                "models": spec.models,
                "datasets": (spec.dataset,),
                "rewards": files_named(spec.params),
            },
            check=_later("train.plan:check"),
            run=_later("train.run:run"),
            needs=_compute,
            output_name=lambda spec: spec.published_name,
            space=_space_to_train,
            settle=_settle_train,
            also=_also_trained,
        ),
        JobKind(
            name="sweep",
            spec=SweepSpec,
            run=_run_sweep,
            # Names, slots and room are its trainings' affair.
            needs=lambda _spec, _slots: {},
            output_name=lambda spec: spec.published_name,
            children=children,
        ),
        JobKind(
            name="merge",
            spec=MergeSpec,
            names=lambda spec: {"models": spec.names},
            check=_later("merge.room:check"),
            run=_later("merge.run:run"),
            needs=_compute,
            output_name=lambda spec: spec.published_name,
            space=lambda _spec, inputs: max(item.size_bytes for item in inputs.values()),
        ),
        JobKind(
            name="search",
            spec=SearchSpec,
            names=lambda spec: {"models": spec.recipe.names, "datasets": spec.datasets},
            check=_later("search.plan:check"),
            run=_later("search.run:run"),
            needs=lambda spec, slots: _compute(spec.recipe, slots),
            output_name=lambda spec: spec.published_name,
            # A result of other shapes than its models' is written once more, to be measured in.
            space=lambda _spec, inputs: 2 * max(item.size_bytes for item in inputs.values()),
        ),
        JobKind(
            name="evaluate",
            spec=EvaluateSpec,
            names=lambda spec: {"models": spec.models, "datasets": spec.datasets},
            check=_later("evaluate.plan:check"),
            run=_later("evaluate.run:run"),
            needs=_compute,
        ),
        JobKind(
            name="export",
            spec=export.ExportSpec,
            names=lambda spec: {"models": (spec.model,)},
            check=export.check,
            run=export.run,
            needs=lambda _spec, _slots: {"io": 1},
            also=lambda spec: {"files": (spec.published_name,)},
            space=export.file_size,
        ),
        JobKind(
            name="pull",
            spec=pull.PullSpec,
            check=lambda spec, _inputs: pull.check(spec),
            run=pull.run,
            needs=lambda _spec, _slots: {"io": 1},
            output_name=pull.published_name,
        ),
    )
}


def kind_named(name: str) -> JobKind[Any]:
    """Raises NotFound, naming the nearest kinds."""
    return choose(KINDS, name, "kind of job")
