"""The server about itself: health, doctor, plug-ins, and the engines it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends

import modelworks
from modelworks.api.dependencies import services
from modelworks.app.doctor import Check, examine
from modelworks.app.plugins import PluginInfo, list_plugins
from modelworks.app.services import Services

router = APIRouter(prefix="/modelworks", tags=["system"])
STARTED = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Health:
    status: Literal["ok"] = "ok"
    version: str
    uptime_seconds: float


@router.get("/health")
async def health() -> Health:
    """Say that the server answers."""
    return Health(version=modelworks.__version__, uptime_seconds=round(time.monotonic() - STARTED, 3))


@router.get("/doctor")
def doctor(app: Annotated[Services, Depends(services)]) -> list[Check]:
    """Look at everything the server depends on; what is not well comes with its remedy."""
    return examine(app.settings)


@router.get("/plugins")
def plugins() -> dict[str, list[PluginInfo]]:
    """List every strategy, method, metric and format, with the schema of its parameters."""
    return list_plugins()
