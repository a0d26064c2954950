from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.cores import CoreBudget, count_cores


@pytest.mark.parametrize("cores", [2, 3, 8, 64])
@pytest.mark.parametrize("jobs", [0, 1, 2])
@pytest.mark.parametrize("busy", [0, 1, 2])
def test_engines_and_jobs_together_have_no_more_threads_than_cores(cores: int, jobs: int, busy: int) -> None:
    told: list[int] = []
    budget = CoreBudget(cores, changed=lambda: told.append(1))
    budget.note_jobs(jobs)
    budget.note_engines(busy)

    given = budget.job_threads() * jobs + budget.engine_threads(busy) * busy

    # Nobody has less than one thread, so more engines than serving has cores are more than the cores.
    assert given <= cores + max(0, jobs - (cores - cores // 2)) + (max(0, busy - cores // 2) if jobs else 0)
    assert len(told) == bool(jobs)


def test_whoever_is_alone_has_all_cores() -> None:
    budget = CoreBudget(8)
    assert budget.engine_threads(1) == 8
    budget.note_jobs(1)
    assert (budget.job_threads(), budget.engine_threads(1)) == (8, 4)
    budget.note_engines(1)
    assert budget.job_threads() == 4


def test_a_containers_quota_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert count_cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert count_cores(tmp_path / "cpu.max") == count_cores(tmp_path / "none") >= 1
