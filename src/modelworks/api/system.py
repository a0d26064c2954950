"""The server about itself: health, doctor, plug-ins, and the engines it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from pydantic import BeforeValidator, Field

import modelworks
from modelworks.api.jobs import Documented
from modelworks.app.answers import DeploymentStatus
from modelworks.app.doctor import Check, examine
from modelworks.app.kinds import KINDS
from modelworks.app.live import LiveMerge, merge_live
from modelworks.app.plugins import PluginInfo, list_plugins
from modelworks.core.clock import seconds_of
from modelworks.core.spec import Spec, example
from modelworks.web.dependencies import App

router = APIRouter(prefix="/modelworks", tags=["system"])
STARTED = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Health:
    status: Literal["ok"] = "ok"
    version: str
    uptime_seconds: float


class Wish(Spec):
    """A model or adapter to serve, or no longer."""

    model_config = example(model="me/first")

    model: str = Field(description="its name, alias or id")


class Load(Wish):
    """A model, adapter or entry to serve, by at least so many replicas; those that are missing go to `device`."""

    model_config = example(model="me/first", replicas=2, device="auto")

    replicas: int = Field(1, ge=1, le=64, description="engines that share its requests")
    device: str | None = Field(None, description="cpu, cuda, cuda:N or auto, which is the freest GPU or else the CPU")
    quantization: Literal["none", "int8"] | None = Field(
        None, description="int8: weights of a byte each, by the native engine on a CPU; default: as set"
    )
    keep_alive: Annotated[float, BeforeValidator(seconds_of)] | None = Field(
        None, description="seconds it stays when nobody asks, or 10m, 1h; below 0 for good; default: as set"
    )


@router.get("/health")
async def health() -> Health:
    """Say that the server answers."""
    return Health(version=modelworks.__version__, uptime_seconds=round(time.monotonic() - STARTED, 3))


@router.get("/doctor")
def doctor(app: App) -> list[Check]:
    """Look at everything the server depends on; what is not well comes with its remedy."""
    return examine(app.settings)


@router.get("/plugins")
def plugins() -> dict[str, list[PluginInfo]]:
    """List every strategy, method, metric and format, with the schema of its parameters."""
    return list_plugins()


@router.get("/kinds")
def kinds() -> dict[str, dict[str, Any]]:
    """List every kind of job, with the schema of what it is asked for by."""
    return {kind.name: kind.spec.model_json_schema() for kind in KINDS.values()}


@router.get("/deployments")
async def deployments(
    app: App, stats: Annotated[bool, Query(description="ask every engine")] = False
) -> tuple[DeploymentStatus, ...]:
    """List the models that are served; with `stats`, also what each engine says of itself."""
    return await app.gateway.stats() if stats else app.gateway.deployments()


@router.post("/deployments/load")
async def load(wish: Load, app: App) -> DeploymentStatus:
    """Start engines for a model, or add an adapter to those of its base; answers when they are ready."""
    return await app.gateway.load(wish.model, **wish.model_dump(exclude={"model"}))


@router.post("/deployments/merge")
async def merge_in_memory(
    spec: Annotated[dict[str, Any], Documented(KINDS["merge"].spec), Body()], app: App
) -> LiveMerge:
    """Serve a merge from memory, or give the one that is served other weights; answers when they are in.

    Nothing is written to the disk. The spec's name (default: BASE-METHOD) is served until it is unloaded or the server
    ends; asked for again with other coefficients, the same engine changes its weights in place. Answers that go on end
    first, with the weights they began with.
    """
    return await merge_live(app, spec)


@router.post("/deployments/remove", status_code=204)
async def remove(wish: Wish, app: App) -> None:
    """Let one replica's answers end, then end it; the last one goes as by unload."""
    await app.gateway.remove(wish.model)


@router.post("/deployments/unload", status_code=204)
async def unload(wish: Wish, app: App) -> None:
    """Let running answers end, then end the engine and free its memory."""
    await app.gateway.unload(wish.model)
