"""A job as the processes of one training share it: the first alone talks to it, and all stop at the same step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from modelworks.core.context import JobContext
from modelworks.core.errors import Cancelled
from modelworks.core.nouns import AnyArtifact, Draft, JsonValue

_STOP, _PAUSE = 1, 2


@dataclass
class SharedJob:
    """A JobContext. Of several processes only the first has the `job`; a stop counts once all have heard of it."""

    job: JobContext | None
    job_id: str
    inputs: Mapping[str, AnyArtifact]
    checkpoints: Path
    processes: int = 1
    # What all have agreed on.
    _asked: int = 0
    _holding: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, job: JobContext, processes: int = 1) -> SharedJob:
        return cls(job, job.job_id, job.inputs, job.checkpoints, processes)

    @property
    def speaks(self) -> bool:
        """Whether this is the first process."""
        return self.job is not None

    @contextmanager
    def first_of_all(self) -> Iterator[None]:
        """Let the first process do this before the others."""
        if self.processes == 1:
            yield
            return
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield

    @property
    def pausing(self) -> bool:
        if self.processes > 1:
            return self._asked == _PAUSE
        return self.job is not None and self.job.pausing

    def check(self) -> None:
        if self.processes > 1:
            if self._asked and not (self._holding and self.pausing):
                raise Cancelled
        else:
            self._tell(lambda job: job.check())

    def agree(self) -> None:
        """Raise Cancelled in every process if the job is to stop; all must come here at the same point of the work."""
        if self.processes > 1 and not self._asked:
            import torch
            from accelerate import PartialState

            wish = torch.tensor([self._wish()], device=PartialState().device)
            torch.distributed.broadcast(wish, 0)
            self._asked = int(wish.item())
        self.check()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let a pause wait: what is done here is part of the step that it will keep."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def stage(self, name: str) -> Path:
        if self.job is None:
            raise RuntimeError("only the first process publishes")
        return self.job.stage(name)

    def progress(self, done: float, total: float, unit: str, **facts: JsonValue) -> None:
        self._tell(lambda job: job.progress(done, total, unit, **facts))

    def metric(self, step: int, **values: float) -> None:
        self._tell(lambda job: job.metric(step, **values))

    def log(self, message: str, level: str = "info") -> None:
        if self.job is not None:
            self.job.log(message, level)

    def publish(self, draft: Draft) -> None:
        if self.job is not None:
            self.job.publish(draft)

    def _tell(self, say: Callable[[JobContext], None]) -> None:
        if self.job is None:
            return
        if self.processes > 1:
            with suppress(Cancelled):  # until all have agreed on it
                say(self.job)
            return
        try:
            say(self.job)
        except Cancelled:
            if not (self._holding and self.job.pausing):
                raise

    def _wish(self) -> int:
        if self.job is not None:
            try:
                self.job.check()
            except Cancelled:
                return _PAUSE if self.job.pausing else _STOP
        return 0
