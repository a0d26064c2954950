"""The kinds of job: for each its spec, what its names mean, its check before it is accepted, and its craft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from modelworks.app.catalog import Shelf
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
from modelworks.weights.export import ExportSpec, file_size
from modelworks.weights.pull import PullSpec, published_name

S = TypeVar("S", bound=Spec)
Inputs = Mapping[str, AnyArtifact]


@dataclass(frozen=True, kw_only=True)
class JobKind(Generic[S]):
    name: str
    spec: type[S]
    # The names in the spec, by shelf: "models" or "datasets".
    names: Callable[[S], Mapping[str, tuple[str, ...]]]
    # Raises Invalid with every problem at once, before any work.
    check: Callable[[S, Inputs], None]
    run: Callable[[S, JobContext], JsonObject]
    # Slots, by resource: what the spec asks for, given what this machine has.
    needs: Callable[[S, Mapping[str, int]], dict[str, int]]
    # What the job will publish under, if anything; a spec without a name gets this one.
    output_name: Callable[[S], str | None]
    # Room on the disk, in bytes, beyond a reserve.
    space: Callable[[S, Inputs], int]
    # Further names it will publish under, by shelf.
    also: Callable[[S], Mapping[Shelf, tuple[str, ...]]] = lambda _spec: {}
    # What the spec leaves to us, decided: it is kept with the job.
    settle: Callable[[S, Inputs], JsonObject] = lambda _spec, _inputs: {}
    # The trainings that such a job, called so, consists of; it has no run of its own then.
    children: Callable[[S, str], Sequence[Child]] = lambda _spec, _name: ()


def _check_train(spec: TrainSpec, inputs: Inputs) -> None:
    from modelworks.train.plan import check

    check(spec, inputs)


def _settle_train(spec: TrainSpec, inputs: Inputs) -> JsonObject:
    from modelworks.train.plan import adapter_to_go_on_from, chosen_inputs, lora_of, settle

    start = adapter_to_go_on_from(spec, inputs)
    return asdict(settle(spec, chosen_inputs(spec, inputs)[0])) | (lora_of(start) if start else {})


def _space_to_train(spec: TrainSpec, inputs: Inputs) -> int:
    from modelworks.train.footprint import disk_bytes
    from modelworks.train.plan import chosen_inputs

    return disk_bytes(spec, chosen_inputs(spec, inputs)[0])


def _run_train(spec: TrainSpec, job: JobContext) -> JsonObject:
    from modelworks.train.run import run

    return run(spec, job)


def _also_trained(spec: TrainSpec) -> Mapping[Shelf, tuple[str, ...]]:
    merged, file = spec.merge and spec.tuning == "lora", spec.export_gguf is not None
    return {"models": (spec.merged_name,) * merged, "files": (spec.gguf_name,) * file}


def _check_merge(spec: MergeSpec, inputs: Inputs) -> None:
    from modelworks.merge.room import check

    check(spec, inputs)


def _run_merge(spec: MergeSpec, job: JobContext) -> JsonObject:
    from modelworks.merge.run import run

    return run(spec, job)


def _check_evaluate(spec: EvaluateSpec, inputs: Inputs) -> None:
    from modelworks.evaluate.plan import check

    check(spec, inputs)


def _run_evaluate(spec: EvaluateSpec, job: JobContext) -> JsonObject:
    from modelworks.evaluate.run import run

    return run(spec, job)


def _check_search(spec: SearchSpec, inputs: Inputs) -> None:
    from modelworks.search.plan import check

    check(spec, inputs)


def _run_search(spec: SearchSpec, job: JobContext) -> JsonObject:
    from modelworks.search.run import run

    return run(spec, job)


def _run_sweep(_spec: SweepSpec, _job: JobContext) -> JsonObject:
    raise Unsupported("a sweep has no run of its own; its trainings have")


def _check_pull(spec: PullSpec, _inputs: Inputs) -> None:
    from modelworks.weights.pull import check

    check(spec)


def _run_pull(spec: PullSpec, job: JobContext) -> JsonObject:
    from modelworks.weights.pull import run

    return run(spec, job)


def _check_export(spec: ExportSpec, inputs: Inputs) -> None:
    from modelworks.weights.export import check

    check(spec, inputs)


def _run_export(spec: ExportSpec, job: JobContext) -> JsonObject:
    from modelworks.weights.export import run

    return run(spec, job)


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
            check=_check_train,
            run=_run_train,
            needs=_compute,
            output_name=lambda spec: spec.published_name,
            space=_space_to_train,
            settle=_settle_train,
            also=_also_trained,
        ),
        JobKind(
            name="sweep",
            spec=SweepSpec,
            # Names, slots and room are its trainings' affair.
            names=lambda _spec: {},
            check=lambda _spec, _inputs: None,
            run=_run_sweep,
            needs=lambda _spec, _slots: {},
            output_name=lambda spec: spec.published_name,
            space=lambda _spec, _inputs: 0,
            children=children,
        ),
        JobKind(
            name="merge",
            spec=MergeSpec,
            names=lambda spec: {"models": spec.names},
            check=_check_merge,
            run=_run_merge,
            needs=_compute,
            output_name=lambda spec: spec.published_name,
            space=lambda _spec, inputs: max(item.size_bytes for item in inputs.values()),
        ),
        JobKind(
            name="search",
            spec=SearchSpec,
            names=lambda spec: {"models": spec.recipe.names, "datasets": spec.datasets},
            check=_check_search,
            run=_run_search,
            needs=lambda spec, slots: _compute(spec.recipe, slots),
            output_name=lambda spec: spec.published_name,
            # A result of other shapes than its models' is written once more, to be measured in.
            space=lambda _spec, inputs: 2 * max(item.size_bytes for item in inputs.values()),
        ),
        JobKind(
            name="evaluate",
            spec=EvaluateSpec,
            names=lambda spec: {"models": spec.models, "datasets": spec.datasets},
            check=_check_evaluate,
            run=_run_evaluate,
            needs=_compute,
            output_name=lambda _spec: None,
            space=lambda _spec, _inputs: 0,
        ),
        JobKind(
            name="export",
            spec=ExportSpec,
            names=lambda spec: {"models": (spec.model,)},
            check=_check_export,
            run=_run_export,
            needs=lambda _spec, _slots: {"io": 1},
            output_name=lambda _spec: None,
            also=lambda spec: {"files": (spec.published_name,)},
            space=file_size,
        ),
        JobKind(
            name="pull",
            spec=PullSpec,
            names=lambda _spec: {},
            check=_check_pull,
            run=_run_pull,
            needs=lambda _spec, _slots: {"io": 1},
            output_name=published_name,
            space=lambda _spec, _inputs: 0,
        ),
    )
}


def kind_named(name: str) -> JobKind[Any]:
    """Raises NotFound, naming the nearest kinds."""
    return choose(KINDS, name, "kind of job")
