from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from doors import end, insert_job, report, start
from modelworks.app.services import Services
from modelworks.app.training import TrainingProgress, progress_of, unfinished_training
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.nouns import EventType, Job, JsonObject

SPEC: JsonObject = {"model": "m", "dataset": "d", "num_train_epochs": 3, "max_steps": None}


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    app = open_app(Settings.model_validate({"home": tmp_path, "hub_offline": True}))
    yield app.services
    app.close()


@pytest.fixture
def job(services: Services) -> Job:
    return start(services, insert_job(services, "train", SPEC))


def tell_steps(services: Services, job: Job, done: int, total: int, **facts: float) -> None:
    body: JsonObject = {"done": done, "total": total, "unit": "steps", "stage": "training", **facts}
    report(services, job, [body], EventType.PROGRESS)


def test_a_training_that_told_nothing_is_at_its_beginning(services: Services, job: Job) -> None:
    assert progress_of(services, job) == TrainingProgress(total_epochs=3.0)


def test_the_newest_events_say_how_far_it_is(services: Services, job: Job) -> None:
    report(services, job, [{"step": 499, "loss": 0.3, "learning_rate": 1e-4, "epoch": 1.361}])
    report(services, job, [{"step": 500, "loss": 0.234, "learning_rate": 2e-4, "epoch": 1.364}])
    tell_steps(services, job, 500, 1100, epoch=1.364, eta_seconds=12.0)

    assert progress_of(services, job) == TrainingProgress(
        percent=45.5, step=500, total_steps=1100, epoch=1.364, total_epochs=3.0, loss=0.234, learning_rate=2e-4,
        eta_seconds=12.0,
    )  # fmt: skip


def test_a_step_that_was_only_measured_counts(services: Services, job: Job) -> None:
    tell_steps(services, job, 1, 4, epoch=0.75)
    report(services, job, [{"step": 2, "loss": 0.5, "epoch": 1.5}])

    assert (progress_of(services, job).step, progress_of(services, job).epoch) == (2, 1.5)


def test_a_run_that_begins_again_goes_back(services: Services, job: Job) -> None:
    report(services, job, [{"step": 8, "loss": 0.5, "epoch": 2.0}])
    report(services, job, [{"done": 0, "total": 1, "unit": "steps", "stage": "preparing"}], EventType.PROGRESS)
    assert progress_of(services, job).percent == 0.0

    tell_steps(services, job, 4, 16, epoch=1.0)
    assert progress_of(services, job).percent == 25.0


def test_measuring_after_the_last_step_is_no_step_back(services: Services, job: Job) -> None:
    report(services, job, [{"step": 12, "loss": 0.5, "epoch": 3.0}])
    tell_steps(services, job, 12, 12, epoch=3.0)
    report(services, job, [{"done": 1, "total": 50, "unit": "rows", "stage": "measuring"}], EventType.PROGRESS)

    found = progress_of(services, job)

    assert (found.percent, found.step, found.total_steps, found.epoch) == (100.0, 12, 12, 3.0)


def test_steps_asked_for_instead_of_epochs_say_how_many_epochs_they_are(services: Services) -> None:
    job = start(services, insert_job(services, "train", SPEC | {"max_steps": 60}))
    report(services, job, [{"step": 15, "loss": 0.5, "epoch": 0.5}])
    tell_steps(services, job, 15, 60, epoch=0.5)

    assert progress_of(services, job).total_epochs == 2.0


def test_what_waits_or_runs_is_told_oldest_first(services: Services, job: Job) -> None:
    waiting = insert_job(services, "train", SPEC)
    insert_job(services)

    assert [found.id for found in unfinished_training(services)] == [job.id, waiting.id]
    end(services, job)
    assert [found.id for found in unfinished_training(services)] == [waiting.id]
