"""What a run sees of the outside: its inputs, its folder, and how to report and publish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from modelworks.core.nouns import AnyArtifact, Draft, JsonValue


class JobContext(Protocol):
    """Handed to a craft's `run(spec, job)`. Every reporting call raises Cancelled once the job is to stop."""

    @property
    def job_id(self) -> str: ...

    @property
    def inputs(self) -> Mapping[str, AnyArtifact]:
        """What the names in the spec meant when the job was accepted, by the name used."""

    @property
    def checkpoints(self) -> Path:
        """Kept from run to run of the same job, removed when it ends well."""

    @property
    def pausing(self) -> bool:
        """Whether the stop that is asked for is a pause: what was reached so far is then worth a checkpoint."""

    def stage(self, name: str) -> Path:
        """Make an empty private folder to write an output in."""

    def check(self) -> None:
        """Raise Cancelled if the job is to stop, for good or for a pause. Cheap: call it in every inner loop."""

    def progress(self, done: float, total: float, unit: str, **facts: JsonValue) -> None:
        """Say how far the run is; facts are e.g. `stage="training"`, `eta_seconds=12`. Rate-limited inside."""

    def metric(self, step: int, **values: float) -> None:
        """Record numbers of one step, e.g. loss, learning_rate, grad_norm, tokens_per_second."""

    def log(self, message: str, level: str = "info") -> None:
        """Tell the user something, in a sentence."""

    def publish(self, draft: Draft) -> None:
        """Hand over a finished folder. It becomes visible when the job succeeds, all drafts at once."""
