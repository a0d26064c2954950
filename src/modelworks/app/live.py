"""Merging straight into a served model: nothing touches the disk, and a coefficient can be changed and felt at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelworks.app.kinds import kind_named
from modelworks.app.services import Services
from modelworks.core.errors import Conflict, Invalid, Problem
from modelworks.core.ids import check_name
from modelworks.core.nouns import AnyArtifact, Deployment, JsonObject, Model
from modelworks.core.spec import parse_spec
from modelworks.merge.fit import HEAD
from modelworks.merge.plan import Plan, make_plan
from modelworks.merge.spec import MergeSpec
from modelworks.store.catalog import from_json, to_json

ENGINE = "merge in memory"


@dataclass(frozen=True, kw_only=True)
class LiveMerge:
    """What is served now under `name`; `seconds` from the request until its new weights were in."""

    name: str
    seconds: float
    tensors_merged: int
    task_vector_norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)


async def merge_live(services: Services, body: Mapping[str, object]) -> LiveMerge:
    """Serve a merge under the spec's name, or give the one that is served there other weights.

    Answers that go on end first, with the weights they began with. What the spec says of its place on the disk
    (`output_dir`, `replace`) is not of this.

    Raises:
        Invalid: with every problem of the spec and its models.
        Conflict: the name is a model's, an adapter's or an entry's, or the one served has another base.
    """
    started = time.monotonic()
    name, frame, recipe = await asyncio.to_thread(_prepare, services, body)
    told: dict[str, Any] = await services.gateway.merge(name, frame, recipe)
    return LiveMerge(name=name, seconds=round(time.monotonic() - started, 3), **told)


def live_merges(services: Services) -> list[Deployment]:
    """Every merge that is served from memory."""
    gateway = services.running_gateway
    found = gateway.deployments() if gateway else ()
    return [status.deployment for status in found if status.deployment.engine == ENGINE]


def _prepare(services: Services, body: Mapping[str, object]) -> tuple[str, Model, JsonObject]:
    spec = parse_spec(MergeSpec, body, where="merge")
    name = check_name(spec.published_name)
    known = _folders(services.gateway.recipe(name))
    inputs = known if set(spec.names) <= known.keys() else services.inputs(kind_named("merge"), spec)
    plan = make_plan(spec, inputs)
    if problems := tuple(_problems(spec, plan)):
        raise Invalid(f"this cannot be merged in memory: {'; '.join(map(str, problems))}", problems=problems)
    services.catalog.check_free("models", name, replace=False)
    if name in services.entries:
        raise Conflict(f"{name!r} is an entry; choose another name")
    artifacts: JsonObject = {key: to_json(artifact) for key, artifact in inputs.items()}
    return name, plan.frame, {"spec": spec.model_dump(mode="json"), "inputs": artifacts}


def _folders(recipe: Mapping[str, Any]) -> dict[str, AnyArtifact]:
    """The inputs of a merge that is served, if they are folders that nobody registered: hashing them takes a second."""
    found = {name: from_json(body) for name, body in recipe.get("inputs", {}).items()}
    return found if all(artifact.name == str(artifact.path) for artifact in found.values()) else {}


def _problems(spec: MergeSpec, plan: Plan) -> Iterator[Problem]:
    """An engine keeps the tokenizer, config and shapes of the frame."""
    remedy = "leave it out, or run the merge as a job"
    if plan.method.gives_adapter:
        yield Problem("method", f"{plan.method.name} gives an adapter, which is no model", "run it as a job")
        return
    if spec.tokenizer not in {None, "base"}:
        yield Problem("tokenizer", "a merge in memory has the tokens of its base", remedy)
    if spec.chat_template is not None:
        yield Problem("chat_template", "a merge in memory has that of its base", remedy)
    frame = plan.base or plan.experts[0]
    wanted = {name: info.shape for name, info in frame.tensors.items() if name != HEAD}
    made = {step.output.name: step.output.shape for step in plan.steps if step.output.name != HEAD}
    if wanted != made:
        where = "slices" if spec.slices else "models"
        yield Problem(where, f"the result has other layers or shapes than {plan.frame.name}", "run it as a job")
