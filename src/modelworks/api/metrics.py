"""Figures for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from modelworks.app.metrics import metrics_text
from modelworks.app.services import Services
from modelworks.web.dependencies import services

router = APIRouter(tags=["system"])


@router.get("/metrics", response_class=Response)
async def metrics(app: Annotated[Services, Depends(services)]) -> Response:
    """Tell requests, queues, times, tokens, caches, engines and jobs in Prometheus' text format."""
    return Response(await metrics_text(app), media_type=CONTENT_TYPE_PLAIN_0_0_4)
