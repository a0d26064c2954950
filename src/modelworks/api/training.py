"""Trainings over HTTP, beside their jobs: what one would read and take."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from modelworks.api.jobs import Documented
from modelworks.app.estimating import Estimate, estimate_training
from modelworks.app.kinds import KINDS
from modelworks.web.dependencies import App

router = APIRouter(prefix="/modelworks", tags=["jobs"])


@router.post("/train/estimate")
def estimate(
    spec: Annotated[dict[str, Any], Documented(KINDS["train"].spec), Body()],
    app: App,
) -> Estimate:
    """Check a training, tokenise its rows, and tell steps, memory, disk and seconds; nothing is queued or trained."""
    return estimate_training(app, spec)
