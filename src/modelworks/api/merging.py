"""Merges over HTTP, beside their jobs: what one would do and take."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from modelworks.api.jobs import Documented
from modelworks.app.kinds import KINDS
from modelworks.app.merging import Estimate, plan_merge
from modelworks.web.dependencies import App

router = APIRouter(prefix="/modelworks", tags=["jobs"])


@router.post("/merge/plan")
def plan(
    spec: Annotated[dict[str, Any], Documented(KINDS["merge"].spec), Body()],
    app: App,
) -> Estimate:
    """Check a merge by headers alone, and tell what it would do and take; nothing is queued or merged."""
    return plan_merge(app, spec)
