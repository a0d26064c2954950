"""The server about itself: health, doctor, plug-ins, and the engines it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends

import modelworks
from modelworks.app.answers import DeploymentStatus
from modelworks.app.doctor import Check, examine
from modelworks.app.plugins import PluginInfo, list_plugins
from modelworks.app.services import Services
from modelworks.core.spec import Spec
from modelworks.web.dependencies import services

router = APIRouter(prefix="/modelworks", tags=["system"])
App = Annotated[Services, Depends(services)]
STARTED = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Health:
    status: Literal["ok"] = "ok"
    version: str
    uptime_seconds: float


class Wish(Spec):
    """A model or adapter to serve, or no longer."""

    model: str


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


@router.get("/deployments")
async def deployments(app: App, stats: bool = False) -> tuple[DeploymentStatus, ...]:
    """List the models that are served; with `stats`, also what each engine says of itself."""
    return await app.gateway.stats() if stats else app.gateway.deployments()


@router.post("/deployments/load")
async def load(wish: Wish, app: App) -> DeploymentStatus:
    """Start an engine for a model, or add an adapter to the one of its base; answers when it is ready."""
    return await app.gateway.load(wish.model)


@router.post("/deployments/unload", status_code=204)
async def unload(wish: Wish, app: App) -> None:
    """Let running answers end, then end the engine and free its memory."""
    await app.gateway.unload(wish.model)
