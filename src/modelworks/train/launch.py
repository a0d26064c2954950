"""Several processes for one training: started, joined by torch.distributed, and ended together."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path

from modelworks.core.config import process_environment
from modelworks.core.context import JobContext
from modelworks.core.errors import Cancelled, ModelworksError, Unavailable
from modelworks.core.nouns import AnyArtifact, JsonObject
from modelworks.train.checkpoints import paused_when_full
from modelworks.train.shared import SharedJob
from modelworks.train.spec import TrainSpec

logger = logging.getLogger(__name__)

Course = Callable[[TrainSpec, SharedJob], JsonObject]

# Until the first process is ended as well, if it has not found out by itself that another has died.
_GRACE_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


class ProcessDied(Unavailable):
    """One of the processes of a training has ended before the others."""

    code = "worker_died"


def run_together(spec: TrainSpec, job: JobContext, course: Course) -> JsonObject:
    """Run `course` in spec.num_processes processes, this one being the first; return what it returns here.

    Args:
        course: a function at the top of a module.
    """
    count = spec.num_processes
    if count == 1:
        return course(spec, SharedJob.of(job))
    port = _free_port()
    context = get_context("spawn")
    # Only the others' end: what is read from it is why one of them failed.
    failures, failing = context.Pipe(duplex=False)
    known = (job.job_id, dict(job.inputs), job.checkpoints)
    others = [
        context.Process(target=_be_another, args=(spec, known, rank, port, failing, course), daemon=True)
        for rank in range(1, count)
    ]
    for other in others:
        other.start()
    failing.close()
    over = threading.Event()
    threading.Thread(target=_watch, args=(others, over), daemon=True).start()
    try:
        with _joined(spec, 0, port):
            return course(spec, SharedJob.of(job, count))
    except (ModelworksError, Cancelled):
        raise
    except Exception as error:
        # A broken connection is how the death of another shows here.
        raise _reason(others, failures) or error from error
    finally:
        over.set()
        for other in others:
            other.kill()
            other.join()


def _be_another(
    spec: TrainSpec,
    known: tuple[str, Mapping[str, AnyArtifact], Path],
    rank: int,
    port: int,
    failing: connection.Connection,
    course: Course,
) -> None:
    """The life of a process that is not the first: it computes, and says nothing but why it failed."""
    # It must not outlive the first, however that ends; nor be stopped before all have agreed to.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = parent_process()
    if parent is None or not parent.is_alive():
        return
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        with _joined(spec, rank, port), paused_when_full(known[2]):
            course(spec, SharedJob(None, *known, processes=spec.num_processes))
    except Cancelled:
        return
    except Exception as error:  # noqa: BLE001 - the first process tells the job of whatever it is
        traceback.print_exc()
        ours = isinstance(error, ModelworksError)
        failing.send((rank, error if ours else f"{type(error).__name__}: {error}"))
        sys.exit(1)


@contextmanager
def _joined(spec: TrainSpec, rank: int, port: int) -> Iterator[None]:
    import torch
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    with process_environment(rank, spec.num_processes, port) as threads:
        torch.set_num_threads(threads)
        # What an earlier training in this process has left.
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=spec.device == "cpu" or not torch.cuda.is_available())
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _watch(others: list[SpawnProcess], over: threading.Event) -> None:
    """End this process if another died and the collective that waits for it does not notice."""
    alive = list(others)
    while alive and not over.is_set():
        connection.wait([other.sentinel for other in alive], timeout=1)
        if any(other.exitcode for other in alive):
            if not over.wait(_GRACE_SECONDS):
                logger.error("a process of the training died, and the others wait for it in vain")
                os._exit(1)
            return
        alive = [other for other in alive if other.exitcode is None]


def _reason(others: list[SpawnProcess], failures: connection.Connection) -> ModelworksError | None:
    for other in others:
        other.join(timeout=5)
    with suppress(EOFError):  # all are gone, and none has said why
        if failures.poll():
            rank, error = failures.recv()
            if isinstance(error, ModelworksError):
                return error
            return ProcessDied(f"process {rank + 1} of the training failed: {error}; the job's log has the rest")
    for number, other in enumerate(others, start=2):
        if other.exitcode:
            how = signal.Signals(-other.exitcode).name if other.exitcode < 0 else f"exit code {other.exitcode}"
            return ProcessDied(
                f"process {number} of the training ended by {how}; the checkpoints are kept, train again to go on"
            )
    return None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
