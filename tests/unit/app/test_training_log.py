from __future__ import annotations

import json
from pathlib import Path

import pytest

from doors import end, insert_job, open_door, report, start
from modelworks.app.services import Services
from modelworks.app.training_log import LOG_NAME, TrainingFiles, end_of_log, log_of
from modelworks.core.nouns import EventType, Job, JsonObject

STEP: JsonObject = {"step": 10, "epoch": 0.7, "step_time": 1.5, "learning_rate": 2e-4, "loss": 0.5, "grad_norm": 1.0}


def train_job(services: Services) -> Job:
    job = start(services, insert_job(services, "train"))
    services.folder(job.id).path.mkdir(parents=True)
    return job


def lines(path: Path) -> list[JsonObject]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_is_told_in_the_documented_words(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        job = train_job(door.services)
        report(door.services, job, [STEP])

        (entry,) = log_of(door.services, job)

    assert list(entry)[:10] == [
        "timestamp", "type", "level", "message", "step", "epoch", "step_time", "learning_rate", "loss", "grad_norm",
    ]  # fmt: skip
    assert "Z" not in str(entry["timestamp"])
    assert "+" not in str(entry["timestamp"])
    told = {key: entry[key] for key in ("type", "level", "message", "epoch", "loss", "job_id")}
    assert told == {
        "type": "training_step", "level": "INFO", "message": "Step 10 completed", "epoch": 0, "loss": 0.5,
        "job_id": job.id,
    }  # fmt: skip


def test_what_a_run_says_stands_between_the_steps(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        job = train_job(door.services)
        report(door.services, job, [{"message": "20 rows lose their end", "level": "warning"}], EventType.LOG)
        report(door.services, job, [{"done": 1, "total": 2, "unit": "steps"}], EventType.PROGRESS)
        report(door.services, job, [STEP] * 3)

        assert [entry["type"] for entry in log_of(door.services, job)] == ["log", *["training_step"] * 3]
        assert log_of(door.services, job)[0]["level"] == "WARNING"
        assert end_of_log(door.services, job, 2) == log_of(door.services, job)[-2:]


def test_the_file_grows_with_the_events_and_the_workspace_leads_to_it(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        job, kept = train_job(door.services), TrainingFiles(door.services)
        kept.keep_up(job.id)
        report(door.services, job, [STEP])
        kept.keep_up(job.id)
        report(door.services, job, [STEP | {"step": 11}])
        kept.keep_up(job.id)
        kept.keep_up(job.id)

        assert lines(tmp_path / LOG_NAME) == log_of(door.services, job)
        assert (tmp_path / LOG_NAME).resolve() == tmp_path / "jobs" / job.id / LOG_NAME

        second = train_job(door.services)
        kept.keep_up(second.id)
        report(door.services, job, [STEP | {"step": 12}])
        kept.keep_up(job.id)

        assert lines(tmp_path / LOG_NAME) == []
        assert len(lines(tmp_path / "jobs" / job.id / LOG_NAME)) == 3


@pytest.mark.parametrize("cut", [0, 1, 30, 10_000])
def test_wherever_a_kill_cut_the_file_nothing_is_lost_or_doubled(tmp_path: Path, cut: int) -> None:
    with open_door(tmp_path) as door:
        job = train_job(door.services)
        report(door.services, job, [STEP | {"step": step} for step in range(1, 4)])
        TrainingFiles(door.services).keep_up(job.id)
        path = tmp_path / LOG_NAME
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
        report(door.services, job, [STEP | {"step": 4}])
        end(door.services, job)

        TrainingFiles(door.services).keep_up(job.id)

        assert lines(path) == log_of(door.services, job)
        assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]


def test_a_disk_that_refuses_is_made_up_for_later(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        job, kept = train_job(door.services), TrainingFiles(door.services)
        kept.keep_up(job.id)
        path = (tmp_path / LOG_NAME).resolve()
        path.unlink()
        path.mkdir()
        report(door.services, job, [STEP])
        kept.keep_up(job.id)
        path.rmdir()
        report(door.services, job, [STEP | {"step": 11}])

        kept.keep_up(job.id)

        assert [line["step"] for line in lines(path)] == [10, 11]


def test_other_jobs_and_those_that_never_began_have_no_log(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        kept = TrainingFiles(door.services)
        waiting = insert_job(door.services, "train")
        kept.keep_up(waiting.id)
        end(door.services, start(door.services, waiting))
        other = start(door.services, insert_job(door.services))
        kept.keep_up(other.id)

        assert not (tmp_path / LOG_NAME).is_symlink()
