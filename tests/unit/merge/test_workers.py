from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from modelworks.core.errors import Cancelled, Invalid
from modelworks.merge.workers import WorkerDied, share_out


def nothing() -> None: ...


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "resource_tracker" not in " ".join(each.cmdline())]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_item_is_worked_on_once_and_its_result_taken(count: int) -> None:
    taken: dict[int, tuple[int, int]] = {}

    share_out(count, range(40), lambda item: (item * item, os.getpid()), taken.__setitem__, nothing)

    assert {item: square for item, (square, _) in taken.items()} == {item: item * item for item in range(40)}
    assert (os.getpid() in {pid for _, pid in taken.values()}) == (count == 1)


def test_what_one_raises_ends_the_others() -> None:
    def work(item: int) -> None:
        if item == 3:
            raise Invalid("three is too many", problems=())
        if item > 3:
            time.sleep(60)

    with pytest.raises(Invalid, match="three is too many"):
        share_out(2, range(9), work, lambda *_: None, nothing)

    assert not children()


def test_a_killed_one_is_told() -> None:
    with pytest.raises(WorkerDied, match="by signal 9"):
        share_out(2, range(4), lambda item: os.kill(os.getpid(), signal.SIGKILL), lambda *_: None, nothing)


def test_a_stop_ends_them_at_once() -> None:
    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        share_out(2, range(4), lambda item: time.sleep(60), lambda *_: None, stop)

    assert not children()


def test_none_outlives_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys, time; from modelworks.merge.workers import share_out\n"
        "def work(item): pathlib.Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(60)\n"
        "share_out(2, range(2), work, lambda *_: None, lambda: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while len(started := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.poll() is None

    parent.kill()
    parent.wait()

    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], 10)
    assert not alive
