"""Protocols of the core, implemented in memory: what a craft's test hands to `run(spec, job)`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from modelworks.core.errors import Cancelled
from modelworks.core.nouns import AnyArtifact, Draft, JsonValue


@dataclass
class FakeJob:
    """A JobContext that remembers. Set `cancel_after` to be cancelled at that many checks."""

    folder: Path
    inputs: dict[str, AnyArtifact] = field(default_factory=dict)
    job_id: str = "01900000-0000-7000-8000-000000000000"
    cancel_after: int | None = None
    pausing: bool = False
    progressed: list[tuple[float, float, str]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    checks: int = 0

    @property
    def checkpoints(self) -> Path:
        path = self.folder / "checkpoints"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def stage(self, name: str) -> Path:
        path = self.folder / "staged" / name
        path.mkdir(parents=True)
        return path

    def check(self) -> None:
        self.checks += 1
        if self.cancel_after is not None and self.checks > self.cancel_after:
            raise Cancelled

    def progress(self, done: float, total: float, unit: str, **facts: JsonValue) -> None:
        self.check()
        self.progressed.append((done, total, unit))

    def metric(self, step: int, **values: float) -> None:
        self.metrics.append({"step": step, **values})
        self.check()

    def log(self, message: str, level: str = "info") -> None:
        self.logs.append(message)

    def publish(self, draft: Draft) -> None:
        self.drafts.append(draft)


class LostJob(FakeJob):
    """A job whose process dies at a step: raises what nothing in a craft catches."""

    dies_at = 0

    def metric(self, step: int, **values: float) -> None:
        super().metric(step, **values)
        if step == self.dies_at and "loss" in values:
            raise KeyboardInterrupt
