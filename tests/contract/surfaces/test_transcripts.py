"""Golden transcripts of every address and every documented error of the five documents, on their ports.

Run with MODELWORKS_TEST_REWRITE=1 to write tests/contract/surfaces/transcripts/ anew; then read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.surfaces.stories import RAN, WAITING
from contract.surfaces.transcript import golden, play, shape, write
from contract.surfaces.world import DATASET_PATH, SAMPLE_JOB, Sources, World, serving
from doors import open_door
from modelworks.store.files import try_lock


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Every story, told once, one after the other."""
    home = tmp_path_factory.mktemp("transcripts") / "home"
    sources.fill(home, None, None)
    assert not DATASET_PATH.is_relative_to(home)
    # While this lock is held no job starts, so that what waits can be looked at.
    lock = try_lock(home / "worker.lock")
    assert lock is not None
    kept: dict[str, str] = {}
    with serving(home) as world:
        exchanges = {name: play(world, steps, kept) for name, steps in WAITING.items()}
        os.close(lock)
        for name in ("merge", "training", "finetuning"):
            assert world.ended(kept[name])["state"] == "succeeded"
        assert world.ended(SAMPLE_JOB)["state"] == "succeeded"
        kept["model"] = trained_by(world, kept["training"])
        for name, steps in RAN.items():
            exchanges[name] += play(world, steps, kept)
        world.settle()
        yield exchanges


def trained_by(world: World, job: str) -> str:
    """The number of the model that a training made."""
    result = world.get(f"/modelworks/jobs/{job}").json()["result"]
    models = world.get("/api/models").json()["models"]
    return str(next(model["id"] for model in models if model["name"] == result["name"]))


@pytest.mark.parametrize("name", WAITING)
def test_a_document_is_answered_as_it_was(name: str, told: dict[str, list[dict[str, Any]]]) -> None:
    if os.environ.get("MODELWORKS_TEST_REWRITE"):
        write(name, told[name])

    expected = golden(name)
    lines = [exchange["request"]["line"] for exchange in told[name]]
    assert lines == [exchange["request"]["line"] for exchange in expected]
    for exchange, was in zip(told[name], expected, strict=True):
        assert exchange == was


def test_no_answer_is_a_bug_and_every_path_outside_names_the_flag(told: dict[str, list[dict[str, Any]]]) -> None:
    exchanges = [exchange for story in told.values() for exchange in story]
    denied = [exchange["body"] for exchange in exchanges if exchange["status"] == 403]

    assert {exchange["status"] for exchange in exchanges} <= {200, 202, 400, 403, 404, 405, 409, 501, 503}
    assert len(denied) >= 5
    assert [body for body in denied if "--allow-path" not in str(body) and "null" not in str(body)] == []


def test_health_on_any_other_port_has_the_fields_of_both_documents(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        answer = door.client.get("http://127.0.0.1:8123/api/health").json()

    assert shape(answer) == {
        "merging_available": True,
        "message": "ModelForge API is running",
        "status": "healthy",
        "timestamp": "<time, milliseconds, Z>",
        "version": "v2",
    }
