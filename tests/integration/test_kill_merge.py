"""A merge that is killed at any moment goes on where it was, and gives the bytes of one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelworks.core.hashing import digest_of, list_files
from tiny import tiny_llama

# Says each tensor that it merges; told to, it stops there for good, as if the machine were slow.
MERGE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from artifacts import as_model
from modelworks.merge import folder
from modelworks.merge.engine import Pace
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec

folder.SECONDS_BETWEEN_SYNCS = 0.0
root, out, last = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
inputs = {name: as_model(root / name, name) for name in ("base", "one", "two")}
plan = make_plan(MergeSpec(method="task_arithmetic", base="base", models=("one", "two")), inputs)

class Watch:
    told = 0
    def check(self): ...
    def progress(self, done, total, unit, *, tensor, **_):
        self.told += 1
        print(tensor, flush=True)
        if self.told == last:
            time.sleep(600)

folder.merge_into(out, plan, Watch(), Pace(workers=1, report="none"), "both", (), {"why": "test"})
"""


def start(root: Path, out: Path, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MERGE, str(Path(__file__).parent.parent), str(root), str(out), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "one", "two")):
        tiny_llama(tmp_path / name, seed)
    return tmp_path


@pytest.mark.parametrize("last", [1, 2, 9])
def test_a_killed_merge_goes_on_where_it_was(root: Path, last: int) -> None:
    whole = start(root, root / "whole", 0)
    assert whole.stdout is not None
    everything = whole.stdout.read().split()
    assert whole.wait(60) == 0

    cut = start(root, root / "cut", last)
    assert cut.stdout is not None
    begun = [cut.stdout.readline().strip() for _ in range(last)]
    os.kill(cut.pid, signal.SIGKILL)
    cut.wait(60)
    again = start(root, root / "cut", 0)
    assert again.stdout is not None
    rest = again.stdout.read().split()
    assert again.wait(60) == 0

    # What was told last may not have been noted any more; everything before it is not done twice.
    assert sorted([*begun[:-1], *rest]) == sorted(everything)
    assert digest_of(list_files(root / "cut")) == digest_of(list_files(root / "whole"))


def test_what_is_left_of_another_merge_is_not_gone_on_with(root: Path) -> None:
    cut = start(root, root / "cut", 5)
    assert cut.stdout is not None
    for _ in range(5):
        cut.stdout.readline()
    os.kill(cut.pid, signal.SIGKILL)
    cut.wait(60)
    tiny_llama(root / "one", seed=7)

    again = start(root, root / "cut", 0)
    assert again.stdout is not None
    merged = again.stdout.read().split()

    assert again.wait(60) == 0
    assert len(merged) == len(set(merged)) == 20
