"""The one address that two documents answer differently: the port decides."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request

from modelworks.core.nouns import JsonObject
from modelworks.web.persona import Persona, persona_of

router = APIRouter(tags=["Model Merging API", "ModelForge REST API"])


@router.get("/api/health")
async def health(request: Request) -> JsonObject:
    """Say that the server answers: in the words of the merging API on its port, of ModelForge on its own."""
    persona = persona_of(request)
    forge: JsonObject = {"status": "healthy", "version": "v2", "message": "ModelForge API is running"}
    if persona is Persona.MODELFORGE:
        return forge
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    merging: JsonObject = {"status": "healthy", "timestamp": now, "merging_available": True, "version": "1.0.0"}
    return merging if persona is Persona.MERGING_API else merging | forge
