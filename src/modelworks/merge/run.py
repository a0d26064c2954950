"""A merge as a job: into a staged folder, going on where a killed run stopped, and published."""

from __future__ import annotations

import time
from collections.abc import Callable

from modelworks.core.context import JobContext
from modelworks.core.nouns import Adapter, ArtifactKind, Draft, JsonObject, Model, Parent
from modelworks.merge.adapters import adapter_facts
from modelworks.merge.engine import Pace
from modelworks.merge.fit import device_of
from modelworks.merge.folder import merge_into
from modelworks.merge.plan import Plan, make_plan
from modelworks.merge.spec import MergeSpec
from modelworks.merge.spotcheck import spot_check
from modelworks.weights.layout import inspect_model


def run(spec: MergeSpec, job: JobContext, finish: Callable[[Draft], Draft] = lambda draft: draft) -> JsonObject:
    """Merge and publish; `finish` has the last word on what is published, and may add files to its folder.

    Raises:
        Invalid: the models do not fit together, or the result is not finite.
    """
    started = time.monotonic()
    plan = make_plan(spec, job.inputs)
    pace = Pace(device_of(spec.device), report=spec.report)
    for warning in (*plan.warnings, *spot_check(plan, job, spec.strict)):
        job.log(warning, "warning")
    parents = parents_of(spec, plan)
    recipe: JsonObject = {"kind": "merge", "spec": spec.model_dump(mode="json")}
    work = job.checkpoints / "model"
    findings = merge_into(work, plan, job, pace, spec.published_name, parents, recipe)
    folder = job.stage("model")
    work.rename(folder)
    is_adapter = plan.method.gives_adapter
    draft = Draft(
        kind=ArtifactKind.ADAPTER if is_adapter else ArtifactKind.MODEL,
        name=spec.published_name,
        folder=folder,
        facts=adapter_facts(plan, folder) if is_adapter else inspect_model(folder),
        parents=parents,
        recipe=recipe,
        metrics={f"task_vector_norm/{model}": norm for model, norm in findings.norms().items()},
        replace=spec.replace,
    )
    job.publish(finish(draft))
    return findings.as_json() | {
        "name": spec.published_name,
        "seconds": round(time.monotonic() - started, 3),
        "bytes": plan.size_bytes,
        "tensors": len(plan.steps),
        "tensors_merged": sum(step.merged for step in plan.steps),
        "share_looked_at": round(findings.share_seen, 3),
        "layers": list(findings.table()),
    }


def parents_of(spec: MergeSpec, plan: Plan) -> tuple[Parent, ...]:
    found: list[tuple[str, Model | Adapter]] = [("base", plan.frame)] if spec.base else []
    for expert in plan.experts:
        if expert.adapter is None or expert.model.id != plan.frame.id or not spec.base:
            found.append(("expert", expert.model))
        if expert.adapter is not None:
            found.append(("expert", expert.adapter))
    return tuple(Parent.of(role, item) for role, item in found)
