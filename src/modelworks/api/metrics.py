"""Figures for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from modelworks.app.metrics import metrics_text
from modelworks.web.dependencies import App

router = APIRouter(tags=["system"])


@router.get("/metrics", response_class=Response)
async def metrics(app: App) -> Response:
    """Tell requests, queues, times, tokens, caches, engines and jobs in Prometheus' text format."""
    return Response(await metrics_text(app), media_type=CONTENT_TYPE_PLAIN_0_0_4)
