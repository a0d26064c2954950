"""Work shared out among processes: Python's lock lets threads bring nothing to pieces this short."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from modelworks.core.errors import Unavailable

W = TypeVar("W")
R = TypeVar("R")

MOST_WORKERS = 8
_SECONDS_BETWEEN_CHECKS = 0.1
_SET_PARENT_DEATH_SIGNAL = 1  # sys/prctl.h


class WorkerDied(Unavailable):
    """A process of a merge was killed."""

    code = "worker_died"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(
    count: int, items: Sequence[W], work: Callable[[W], R], take: Callable[[W, R], None], check: Callable[[], None]
) -> None:
    """Do the work of every item in `count` forks of this process, and take what each returns in this one.

    The next item goes to whoever is free. Nothing that the work changes is seen here but what it returns, which is
    pickled, and what it writes to files.

    Args:
        check: called several times a second; what it raises ends the workers, as does what the work raises.

    Raises:
        WorkerDied: a worker was killed.
    """
    if count <= 1:
        for item in items:
            take(item, work(item))
        return
    context = multiprocessing.get_context("fork")
    following = context.Value("q", 0)
    workers: dict[Connection, Any] = {}
    gc.freeze()  # a collection in a fork would touch, and so copy, every page that holds objects of ours
    try:
        for _ in range(min(count, len(items))):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, following, items, work, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            workers[mine] = process
        while workers:
            for reader in wait(list(workers), _SECONDS_BETWEEN_CHECKS):
                _take_one(reader, workers, items, take)  # type: ignore[arg-type] # only connections were given
            check()
    finally:
        gc.unfreeze()
        for process in workers.values():
            process.kill()
            process.join()


def _take_one(
    reader: Connection, workers: dict[Connection, Any], items: Sequence[W], take: Callable[..., None]
) -> None:
    try:
        place, found = reader.recv()
    except EOFError:
        process = workers.pop(reader)
        process.join()
        if process.exitcode:
            killed = f"by signal {-process.exitcode}" if process.exitcode < 0 else f"with {process.exitcode}"
            raise WorkerDied(
                f"a process of the merge ended {killed}, perhaps for want of memory; try again with fewer workers"
            ) from None
        return
    if isinstance(found, BaseException):
        raise found
    take(items[place], found)


def _work(pipe: Connection, following: Any, items: Sequence[W], work: Callable[[W], Any], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    with suppress(AttributeError, OSError):  # Linux alone; elsewhere a lost parent is noticed with the next result
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    while os.getppid() == parent:
        with following.get_lock():
            place = following.value
            following.value += 1
        if place >= len(items):
            break
        try:
            found = work(items[place])
        except Exception as error:  # noqa: BLE001  raised again in the parent
            pipe.send((place, error))
            break
        pipe.send((place, found))
    os._exit(0)  # without Python's own end, which would wait for threads that a fork does not have
