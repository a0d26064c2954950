from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelworks.app.exporting import export_file
from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.errors import Conflict, NotFound
from modelworks.weights.gguf import GgufFile
from tiny import tiny_llama


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    app = open_app(Settings.model_validate({"home": tmp_path / "home", "hub_offline": True}))
    app.services.catalog.add_model(tiny_llama(tmp_path / "home" / "tiny"), "org/tiny")
    yield app.services
    app.close()


def test_a_model_is_written_where_it_was_asked_for_and_over_nothing(services: Services, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    place = export_file(services, {"model": "org/tiny"}, tmp_path / "a.gguf", lambda *done: told.append(done))

    with GgufFile(place) as file:
        assert "token_embd.weight" in file.tensors
    assert told[-1][0] == told[-1][1] > 0
    with pytest.raises(Conflict, match="exists already; choose another file, or say --overwrite"):
        export_file(services, {"model": "org/tiny"}, place, lambda *_: None)
    with pytest.raises(NotFound, match=r"there is no folder .*nowhere"):
        export_file(services, {"model": "org/tiny"}, tmp_path / "nowhere" / "a.gguf", lambda *_: None)
