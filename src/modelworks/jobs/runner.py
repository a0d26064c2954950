"""The life of one run, inside the runner process: context, outcome, and exit.json as the last act."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from modelworks.core import clock
from modelworks.core.errors import Cancelled, DiskFull, ModelworksError
from modelworks.core.hashing import digest_of, list_files
from modelworks.core.nouns import AnyArtifact, Draft, EventType, Failure, JsonObject, JsonValue
from modelworks.jobs.folder import JobFolder, RunOrder, RunReport, StagedDraft, describe_process
from modelworks.store.files import sync_tree, told_when_full, write_atomically

logger = logging.getLogger(__name__)
LEAST_SECONDS_BETWEEN_PROGRESS = 0.2
NICENESS = 5


@dataclass
class RunnerContext:
    """The JobContext of a real run: reports go to events.jsonl, drafts to `staged/`."""

    folder: JobFolder
    order: RunOrder
    inputs: Mapping[str, AnyArtifact]
    drafts: list[Draft] = field(default_factory=list)
    stop_asked: bool = False
    pausing: bool = False
    _progressed_at: float = 0.0
    _threads: int = 0

    @property
    def job_id(self) -> str:
        return self.order.job_id

    @property
    def checkpoints(self) -> Path:
        self.folder.checkpoints.mkdir(exist_ok=True)
        return self.folder.checkpoints

    def stage(self, name: str) -> Path:
        path = self.folder.staged / name
        path.mkdir(parents=True)
        return path

    def check(self) -> None:
        if self.stop_asked:
            raise Cancelled
        self._keep_to_threads()

    def progress(self, done: float, total: float, unit: str, **facts: JsonValue) -> None:
        self.check()
        now = time.monotonic()
        if done >= total or now - self._progressed_at >= LEAST_SECONDS_BETWEEN_PROGRESS:
            self._progressed_at = now
            self._tell(EventType.PROGRESS, {"done": done, "total": total, "unit": unit, **facts})

    def metric(self, step: int, **values: float) -> None:
        # Told first: the step is done, and a pause keeps it.
        self._tell(EventType.METRIC, {"step": step, **values})
        self.check()

    def log(self, message: str, level: str = "info") -> None:
        self._tell(EventType.LOG, {"message": message, "level": level})

    def publish(self, draft: Draft) -> None:
        self.drafts.append(draft)

    def _keep_to_threads(self) -> None:
        """Compute with as many threads as the server now gives this run; several processes keep theirs."""
        torch = sys.modules.get("torch")
        with suppress(FileNotFoundError, ValueError):
            wished = int(self.folder.threads.read_text())
            if torch is not None and wished != self._threads and not torch.distributed.is_initialized():
                torch.set_num_threads(wished)
                self._threads = wished

    def _tell(self, type_: EventType, body: JsonObject) -> None:
        line = json.dumps({"at": clock.to_iso(clock.now()), "type": type_.value, "body": body}) + "\n"
        # One write call: a reader never sees half a line unless the machine stops.
        with self.folder.events.open("ab") as file:
            file.write(line.encode())


def run_job(
    folder: JobFolder,
    load_inputs: Callable[[JsonObject], Mapping[str, AnyArtifact]],
    execute: Callable[[RunOrder, RunnerContext], JsonObject],
) -> None:
    """Run the order in `folder` to its end and write how it ended. Never raises for what the job did wrong."""
    write_atomically(folder.process, describe_process())
    _stand_back()
    _drop_torn_line(folder.events)
    order = folder.read_order()
    context = RunnerContext(folder, order, load_inputs(order.inputs))

    def stop(number: int, _frame: FrameType | None) -> None:
        context.pausing = number == signal.SIGUSR1 and (context.pausing or not context.stop_asked)
        context.stop_asked = True

    # Before these stand, either signal ends the process: a dead run whose job was to stop has stopped.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
    report = _outcome(folder, context, execute)
    if report.outcome != "succeeded":
        shutil.rmtree(folder.staged, ignore_errors=True)
    folder.write_report(report)


def _outcome(
    folder: JobFolder, context: RunnerContext, execute: Callable[[RunOrder, RunnerContext], JsonObject]
) -> RunReport:
    run = context.order.run
    try:
        with told_when_full(folder.path):
            result = execute(context.order, context)
            drafts = tuple(_settle(folder, draft) for draft in context.drafts)
            context.check()
        return RunReport(run=run, outcome="succeeded", result=result, drafts=drafts)
    except Cancelled:
        return RunReport(run=run, outcome="paused" if context.pausing else "cancelled")
    except DiskFull as error:
        return RunReport(run=run, outcome="paused", failure=Failure(code=error.code, message=error.message))
    except ModelworksError as error:
        problems = tuple(str(problem) for problem in error.problems)
        failure = Failure(code=error.code, message=error.message, problems=problems)
        return RunReport(run=run, outcome="failed", failure=failure)
    except Exception as error:  # noqa: BLE001 - the one place where a bug becomes a failed job
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}; the whole traceback is in {folder.stdout}"
        return RunReport(run=run, outcome="failed", failure=Failure(code="bug", message=message))


def _stand_back() -> None:
    """Let the server come first where both want a core, and the kernel end us, not it, where memory runs out."""
    os.nice(NICENESS)
    # Where the kernel shares cores between sessions, a process' own nice value holds within its session only.
    for place, value in (("autogroup", NICENESS), ("oom_score_adj", 500)):
        with suppress(OSError):  # not Linux, or not built for it
            Path(f"/proc/self/{place}").write_text(str(value))


def _settle(folder: JobFolder, draft: Draft) -> StagedDraft:
    """Hash and flush a draft's files, so that publishing is a rename and a row."""
    files = list_files(draft.folder)
    sync_tree(draft.folder)
    place = draft.folder.relative_to(folder.path)
    return StagedDraft(**vars(draft) | {"folder": place}, digest=digest_of(files), files=files)


def _drop_torn_line(path: Path) -> None:
    """A run killed in the middle of a write leaves half a line: cut it, so that ours begins on a new one."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 65_536)
        file.seek(start)
        end = file.read().rfind(b"\n") + 1
        if start + end != size and (end or start == 0):
            file.truncate(start + end)
