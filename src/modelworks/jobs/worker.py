"""The worker: takes queued jobs, starts or adopts their runs, takes over their events, and records how they end.

One step of the loop looks at everything once. Killing the server between any two statements loses nothing: what a
step does is either one database transaction or can be done again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelworks.core import clock
from modelworks.core.clock import from_iso
from modelworks.core.config import Settings
from modelworks.core.cores import CoreBudget
from modelworks.core.errors import Conflict, ModelworksError
from modelworks.core.ids import new_id
from modelworks.core.nouns import AnyArtifact, EventType, Failure, Job, JsonObject
from modelworks.core.states import JobState
from modelworks.jobs.executors.local import LocalExecutor
from modelworks.jobs.folder import JobFolder, RunOrder, RunReport, StagedDraft
from modelworks.jobs.recovery import Action, cause, decide, died, next_start
from modelworks.store import catalog, events, files
from modelworks.store import jobs as queue
from modelworks.store.database import Database
from modelworks.store.events import NewEvent

logger = logging.getLogger(__name__)
STEP_SECONDS = 0.1
# A folder that nothing was recorded for may belong to an import that goes on; after this long it does not.
LEFT_BEHIND_SECONDS = 6 * 3600
# A run that pauses gets so many times the grace of a cancelled one.
PAUSE_PATIENCE = 5
EVENTS_AT_ONCE_BYTES = 1 << 20


@dataclass
class Worker:
    """Runs `step` for ever in a thread of its own.

    Of all the workers on a workspace only the one that holds its lock looks after jobs; the others wait for it.
    """

    database: Database
    executor: LocalExecutor
    settings: Settings
    # Called with a job's id when it has new events, from the worker's thread.
    notify: Callable[[str], None] = lambda _job_id: None
    # Who looks after a running job that has no run of its own, by kind; such a job needs no slots.
    runless: Mapping[str, Callable[[queue.Claim], None]] = field(default_factory=dict)
    # None: each run takes all cores.
    cores: CoreBudget | None = None
    _threads: dict[str, int] = field(default_factory=dict)
    # When a run that was asked to stop is ended by force, by job and by what it was asked for.
    _kill_at: dict[tuple[str, bool], float] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking after jobs; runs go on and are adopted by the next worker."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def step(self) -> bool:
        """Look at every running job once, then fill the free slots; return whether there is any job to look after."""
        claims = queue.running(self.database)
        for claim in claims:
            if claim.job.kind not in self.runless:
                self._look_after(claim)
        while (claim_ := queue.claim(self.database, self.settings.slots)) is not None:
            self._start(claim_)
        for claim in claims:
            if (look_after := self.runless.get(claim.job.kind)) is not None:
                look_after(claim)
        self._share_cores([claim.job for claim in claims if claim.job.kind not in self.runless])
        if claims:
            return True
        counts = queue.count_by_state(self.database)
        return bool(counts[JobState.RUNNING] or counts[JobState.QUEUED])

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.settings.home / "jobs" / job_id)

    def _run(self) -> None:
        lock, swept, seen = None, False, None
        while lock is None and not self._stopping.wait(STEP_SECONDS):
            lock = files.try_lock(self.settings.home / "worker.lock")
        while not self._stopping.wait(STEP_SECONDS):
            try:
                # Where there was nothing to do and nobody has written since, there is still nothing to do.
                now = self.database.version()
                if now is not None and now == seen:
                    continue
                going_on = self.step()
                if not swept:
                    # After the first step: what a run left finished while nobody looked is recorded by then.
                    files.sweep(self.settings.home, catalog.paths_in_use(self.database), LEFT_BEHIND_SECONDS)
                    swept = True
                seen = None if going_on else now
            except ModelworksError as error:
                # A locked database or a full disk: said, and tried again at the next step.
                logger.warning("worker step failed", extra={"reason": error.message})
                self._stopping.wait(1)
            except Exception:
                # The worker must outlive a bug in one step, or every job of the workspace stands still.
                logger.exception("worker step failed")
                self._stopping.wait(1)
        if lock is not None:
            os.close(lock)

    def _start(self, claim: queue.Claim) -> None:
        job, folder = claim.job, self.folder(claim.job.id)
        if job.kind not in self.runless:
            folder.prepare(RunOrder(job_id=job.id, kind=job.kind, run=job.runs, spec=job.spec, inputs=claim.inputs))
            self._share_cores([each.job for each in queue.running(self.database) if each.job.kind not in self.runless])
            self.executor.start(folder)
        self.notify(job.id)
        logger.info("run started", extra={"job": job.id, "run": job.runs, "kind": job.kind})

    def _share_cores(self, going: Sequence[Job]) -> None:
        """Tell each run that computes on the CPU its threads, when they have changed."""
        if self.cores is None:
            return
        computing = [job.id for job in going if job.needs.get("cpu")]
        self.cores.note_jobs(len(computing))
        share = self.cores.job_threads()
        for job_id in computing:
            if self._threads.get(job_id) != share and self.folder(job_id).path.exists():
                files.write_atomically(self.folder(job_id).threads, str(share).encode())
        self._threads = dict.fromkeys(computing, share)

    def _look_after(self, claim: queue.Claim) -> None:
        job, folder = claim.job, self.folder(claim.job.id)
        # Alive first, then the events: what a dead run wrote is complete when we read it.
        alive = self.executor.is_alive(folder)
        self._take_events(job.id, folder, until_end=not alive)
        report = None if alive else folder.read_report(job.runs)
        deaths = 0 if alive else queue.deaths(self.database, job.id) + 1
        action = decide(
            alive=alive, report=report, stop_requested=job.cancel_requested or job.pause_requested, deaths=deaths,
            max_runs=self.settings.max_runs,
        )  # fmt: skip
        if action is Action.WAIT:
            self._press(job, folder)
            return
        self.executor.kill(folder)
        self._kill_at = {asked: moment for asked, moment in self._kill_at.items() if asked[0] != job.id}
        if action is Action.FINISH and report is not None:
            self._end(job, folder, self._ending(job, folder, report))
        elif action is Action.STOP:
            in_the_way = report.failure if report else None
            self._stopped(job, folder, queue.stop_run(self.database, job.id, job.runs, in_the_way))
        elif action is Action.GIVE_UP:
            resumable = any(folder.checkpoints.glob("checkpoint-*"))
            failure = died(deaths, folder.tail(20), self.executor.exit_code(folder), resumable=resumable)
            self._end(job, folder, queue.Ending(state=JobState.FAILED, failure=failure))
        else:
            self._lose(job, folder, deaths)

    def _press(self, job: Job, folder: JobFolder) -> None:
        """Ask a run to stop, and end it by force when its grace is over: longer for a pause, which writes something."""
        if not (job.cancel_requested or job.pause_requested):
            return
        pause = not job.cancel_requested
        grace = self.settings.cancel_grace_seconds * (PAUSE_PATIENCE if pause else 1)
        if time.monotonic() < self._kill_at.setdefault((job.id, pause), time.monotonic() + grace):
            self.executor.ask_to_stop(folder, pause=pause)
        else:
            self.executor.kill(folder)

    def _lose(self, job: Job, folder: JobFolder, deaths: int) -> None:
        start = next_start(clock.now(), deaths, self.settings.retry_delay_seconds)
        why = cause(self.executor.exit_code(folder))
        reason = f"run {job.runs} died ({why}); the job goes on from its last checkpoint or starts again"
        queue.lose_run(self.database, job.id, job.runs, reason=reason, not_before=start)
        self.notify(job.id)
        logger.warning("run lost", extra={"job": job.id, "run": job.runs})

    def _end(self, job: Job, folder: JobFolder, ending: queue.Ending) -> None:
        queue.end_job(self.database, job.id, job.runs, ending)
        self._stopped(job, folder, ending.state)

    def _stopped(self, job: Job, folder: JobFolder, state: JobState) -> None:
        # A cancelled run that has sealed a checkpoint left it to be gone on from.
        left = state is not JobState.CANCELLED or any(folder.checkpoints.glob("checkpoint-*/manifest.json"))
        folder.clean(keep_checkpoints=left and state is not JobState.SUCCEEDED)
        self.notify(job.id)
        logger.info("run ended", extra={"job": job.id, "state": state.value})

    def _ending(self, job: Job, folder: JobFolder, report: RunReport) -> queue.Ending:
        if report.outcome == "failed":
            return queue.Ending(state=JobState.FAILED, failure=report.failure)
        try:
            published = tuple(self._publish(job, folder, draft) for draft in report.drafts)
        except FileNotFoundError as error:
            failure = Failure(code="output_lost", message=f"the run's output is not where it left it: {error}")
            return queue.Ending(state=JobState.FAILED, failure=failure)
        except Conflict as error:
            return queue.Ending(state=JobState.FAILED, failure=Failure(code=error.code, message=error.message))
        return queue.Ending(state=JobState.SUCCEEDED, result=report.result, artifacts=published)

    def _publish(self, job: Job, folder: JobFolder, draft: StagedDraft) -> catalog.Publication:
        """Move a draft to its content address; it becomes visible with the transaction that ends the job."""
        place = files.place_of(self.settings.home, draft.kind, draft.digest)
        files.settle(folder.path / draft.folder, place)
        if output_dir := job.spec.get("output_dir"):
            _mirror(place, self.settings.home / str(output_dir) / job.id)
        artifact = _artifact(draft, place, job.id)
        return catalog.Publication(artifact=artifact, home=self.settings.home, replace=draft.replace)

    def _take_events(self, job_id: str, folder: JobFolder, *, until_end: bool) -> None:
        while True:
            start = queue.events_offset(self.database, job_id)
            end, new = _read_events(folder.events, start)
            if end == start:
                return
            events.take_over(self.database, job_id, new, start=start, end=end)
            self.notify(job_id)
            if not until_end:
                return


def _mirror(place: Path, target: Path) -> None:
    try:
        files.mirror(place, target)
    except OSError as error:
        raise Conflict(f"the result could not be placed in output_dir: {error}; choose another folder") from None


def _artifact(draft: StagedDraft, place: Path, job_id: str) -> AnyArtifact:
    """What a settled draft becomes."""
    same = {key: getattr(draft, key) for key in ("kind", "name", "digest", "files", "parents", "recipe", "metrics")}
    size_bytes = sum(file.size_bytes for file in draft.files)
    made = {"id": new_id(), "path": place, "job_id": job_id, "created_at": clock.to_iso(clock.now())}
    return catalog.codec().validate_python(draft.facts | same | made | {"size_bytes": size_bytes})


def _read_events(path: Path, start: int) -> tuple[int, list[NewEvent]]:
    """The whole lines from byte `start` on, and where they end; a half-written last line is left for later."""
    if not path.exists():
        return start, []
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(EVENTS_AT_ONCE_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    return start + len(whole), [event for line in whole.splitlines() if (event := _parse_event(line)) is not None]


def _parse_event(line: bytes) -> NewEvent | None:
    try:
        body: JsonObject = json.loads(line)
        inner = body["body"]
        if not isinstance(inner, dict):
            raise ValueError("body is not an object")
        return NewEvent(from_iso(str(body["at"])), EventType(str(body["type"])), inner)
    except (ValueError, KeyError, TypeError):
        # Only a machine that lost its power leaves such a line.
        logger.warning("unreadable event skipped", extra={"line": line[:200].decode(errors="replace")})
        return None
