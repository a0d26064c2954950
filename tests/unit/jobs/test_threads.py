"""A run computes with as many threads as the server gives it, and keeps to what it is given later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.jobs.executors.local import LocalExecutor
from modelworks.jobs.folder import JobFolder, RunOrder
from modelworks.jobs.runner import RunnerContext
from modelworks.store import jobs as queue


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


def test_the_worker_gives_each_run_on_the_cpu_its_share_and_changes_it_when_an_engine_comes(tmp_path: Path) -> None:
    app = open_app(Settings.model_validate({"home": tmp_path, "cores": 8, "hub_offline": True}))
    worker, services = app.worker, app.services
    for needs in ({"cpu": 1}, {"cpu": 1}, {"io": 1}):
        queue.insert_job(services.database, queue.NewJob(kind="train", spec={}, inputs={}, needs=needs))
    claims = [queue.claim(services.database, {"cpu": 2, "io": 1}) for _ in range(3)]
    jobs = sorted((claim.job for claim in claims if claim), key=lambda job: "io" in job.needs)
    threads = [worker.folder(job.id).threads for job in jobs]
    for place in threads:
        place.parent.mkdir(parents=True)

    def told() -> list[str | None]:
        worker._share_cores(jobs)
        return [place.read_text() if place.exists() else None for place in threads]

    assert worker.cores is not None
    assert told() == ["4", "4", None]
    worker.cores.note_engines(1)
    assert told() == ["2", "2", None]
    assert worker.cores.engine_threads(busy=1) == 4
    app.close()
