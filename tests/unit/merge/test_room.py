from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import as_model
from modelworks.core.errors import Invalid
from modelworks.merge import room
from modelworks.merge.spec import MergeSpec
from tiny import tiny_llama


def test_what_does_not_fit_into_memory_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {name: as_model(tiny_llama(tmp_path / name, seed), name) for seed, name in enumerate(("base", "expert"))}
    spec = MergeSpec(base="base", models=("expert",))
    room.check(spec, inputs)
    monkeypatch.setattr(room, "MEMORY", tmp_path / "meminfo")
    room.MEMORY.write_text("MemTotal:   1024 kB\nMemAvailable:   512 kB\n")

    with pytest.raises(Invalid, match=r"GB are needed by \d+ workers, 0\.0 GB are all there is") as caught:
        room.check(spec, inputs)

    assert [problem.code for problem in caught.value.problems] == ["no_memory"]
