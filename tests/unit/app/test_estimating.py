from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelworks.app.estimating import estimate_training
from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.errors import Invalid
from modelworks.data.spec import ImportSpec
from modelworks.train import rate
from tiny import tiny_llama

BODY = {"model": "org/tiny", "dataset": "rows", "max_length": 64}


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    # The real rate takes seconds: torch is loaded for it.
    monkeypatch.setattr(rate, "measured", lambda _dtype: 0.01)
    app = open_app(Settings.model_validate({"home": tmp_path / "home", "hub_offline": True}))
    app.services.catalog.add_model(tiny_llama(tmp_path / "home" / "tiny"), "org/tiny")
    rows = "".join(f'{{"prompt": "{number}", "completion": "b"}}\n' for number in range(8))
    (tmp_path / "home" / "rows.jsonl").write_text(rows)
    app.services.catalog.upload(tmp_path / "home" / "rows.jsonl", ImportSpec(name="rows"))
    yield app.services
    app.close()


def test_a_sweep_is_estimated_as_all_of_its_trainings(services: Services) -> None:
    small, large = (estimate_training(services, BODY | {"lora_r": rank}) for rank in (4, 16))

    both = estimate_training(services, BODY | {"sweep": {"r": "4,16"}, "sweep_metric": "loss"})

    assert (both.memory_bytes, both.steps) == (large.memory_bytes, large.steps)
    assert both.disk_bytes == small.disk_bytes + large.disk_bytes
    assert both.notes[-1].startswith("2 trainings: disk and seconds are of all")
    assert "lora_r=16, which takes the most" in both.notes[-1]


def test_what_is_wrong_with_a_training_of_a_sweep_is_told(services: Services) -> None:
    with pytest.raises(Invalid, match="9999 is more than the 256 tokens"):
        estimate_training(services, BODY | {"sweep": {"max_length": [64, 9999]}})
    with pytest.raises(Invalid, match="name at least one field"):
        estimate_training(services, BODY | {"sweep_metric": "loss"})
