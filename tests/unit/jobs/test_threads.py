"""A run computes with as many threads as the server gives it, and keeps to what it is given later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelworks.jobs.executors.local import LocalExecutor
from modelworks.jobs.folder import JobFolder, RunOrder
from modelworks.jobs.runner import RunnerContext


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def folder_of(path: Path) -> JobFolder:
    folder = JobFolder(path)
    folder.prepare(RunOrder(job_id="1", kind="train", run=1, spec={}, inputs={}))
    return folder


def test_a_run_changes_its_threads_between_steps(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "job")
    context = RunnerContext(folder, folder.read_order(), {})
    context.check()  # nobody has said anything
    for count in ("2", "1", "3"):
        folder.threads.write_text(count)
        context.metric(1, loss=1.0)
        assert torch.get_num_threads() == int(count)


def test_a_run_begins_with_its_share(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "job")
    folder.threads.write_text("3")
    executor = LocalExecutor(("/bin/sh", "-c", "echo has $OMP_NUM_THREADS"), {"PATH": "/bin:/usr/bin"})
    executor.start(folder)
    next(iter(executor.children.values())).wait()
    assert folder.stdout.read_text() == "has 3\n"
