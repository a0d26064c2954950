from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from doors import open_door
from modelworks.merge import room
from tiny import tiny_llama

if TYPE_CHECKING:
    import pytest


def test_a_merge_is_planned_without_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_door(tmp_path / "home", allow_paths=(tmp_path,)) as door:
        for seed, name in enumerate(("x", "y")):
            door.services.catalog.add_model(tiny_llama(tmp_path / name, seed), f"me/{name}")
        models = [{"model": f"me/{name}", "parameters": {"weight": 1, "density": 1}} for name in ("x", "y")]
        planned = door.client.post("/modelworks/merge/plan", json={"merge_method": "linear", "models": models})
        refused = door.client.post("/modelworks/merge/plan", json={"method": "averge", "models": ["me/x"]})
        monkeypatch.setattr(room, "MEMORY", tmp_path / "meminfo")
        room.MEMORY.write_text("MemTotal:   1024 kB\n")
        too_large = door.client.post("/modelworks/merge/plan", json={"method": "average", "models": ["me/x"]})

        assert planned.status_code == 200
        assert planned.json()["bytes_read"] == 2 * planned.json()["bytes_written"]
        assert len(planned.json()["notes"]) == 2
        assert refused.status_code == 400
        assert "did you mean average" in refused.json()["problems"][0]["remedy"]
        assert too_large.json()["problems"][0]["code"] == "no_memory"
        assert door.services.jobs() == []
