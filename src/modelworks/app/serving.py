"""Everything that can be asked for text by name, and how it is served at this moment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, TypeAlias

from modelworks.app.answers import DeploymentStatus
from modelworks.app.services import Services
from modelworks.core.nouns import Adapter, Model
from modelworks.serve.deployment import ReplicaStatus

Kind: TypeAlias = Literal["model", "adapter", "entry"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One name. An adapter has the replicas of its base; `unloaded` has none."""

    name: str
    kind: Kind
    state: str
    replicas: tuple[ReplicaStatus, ...] = ()
    error: str | None = None


async def standings(app: Services) -> list[Standing]:
    """Every entry, model and adapter; also what is served without being registered: a folder, a merge in memory."""
    artifacts = await asyncio.to_thread(app.servable)
    deployed = app.gateway.deployments()
    entries = {status.deployment.model_name: status for status in deployed if status.deployment.engine == "entry"}
    models = {status.deployment.model: status for status in deployed if status.deployment.engine != "entry"}
    found = [_standing(name, "entry", entries.get(name)) for name in app.entries]
    # An entry comes before what else has its name.
    artifacts = [artifact for artifact in artifacts if artifact.name not in app.entries]
    for artifact in artifacts:
        kind: Kind = "adapter" if isinstance(artifact, Adapter) else "model"
        found.append(_standing(artifact.name, kind, _status_of(artifact, models)))
    known = {artifact.id for artifact in artifacts}
    return found + [_standing(models[id_].deployment.model_name, "model", models[id_]) for id_ in models.keys() - known]


def _status_of(artifact: Model | Adapter, models: dict[str, DeploymentStatus]) -> DeploymentStatus | None:
    if isinstance(artifact, Model):
        return models.get(artifact.id)
    return next((status for status in models.values() if artifact.name in status.adapters), None)


def _standing(name: str, kind: Kind, status: DeploymentStatus | None) -> Standing:
    if status is None:
        return Standing(name=name, kind=kind, state="unloaded")
    return Standing(name=name, kind=kind, state=status.state, replicas=status.replicas, error=status.error)
