"""The one address that two documents answer differently: the port decides."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from modelworks.web.persona import Persona, persona_of

router = APIRouter(tags=["Model Merging API", "ModelForge REST API"])


class HealthOut(BaseModel):
    """What the port's document names; on a port of no document, all of it."""

    status: str = Field("healthy", description="supported: of both documents")
    version: str = Field(description="supported: 1.0.0 on the merging port, v2 on ModelForge's and any other")
    message: str | None = Field(None, description="supported: of ModelForge")
    timestamp: str | None = Field(None, description="supported: of the merging API; milliseconds, UTC")
    merging_available: bool | None = Field(None, description="supported: of the merging API; always true")


@router.get("/api/health", response_model_exclude_none=True)
async def health(request: Request) -> HealthOut:
    """Say that the server answers: in the words of the merging API on its port, of ModelForge on its own."""
    persona = persona_of(request)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    merges, forges = persona is not Persona.MODELFORGE, persona is not Persona.MERGING_API
    return HealthOut(
        version="v2" if forges else "1.0.0",
        message="ModelForge API is running" if forges else None,
        timestamp=now if merges else None,
        merging_available=merges or None,
    )
