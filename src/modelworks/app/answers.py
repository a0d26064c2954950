"""Types of the crafts that verbs take and answer with, for the doors to name."""

from __future__ import annotations

from modelworks.data.preview import Preview
from modelworks.serve.deployment import DeploymentStatus

__all__ = ["DeploymentStatus", "Preview"]
