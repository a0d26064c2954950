from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelworks.app.live import LiveMerge
from modelworks.cli.live import LiveRecipe, changed, live_name
from modelworks.cli.options import Session
from modelworks.core.errors import Invalid
from modelworks.core.ids import check_name
from modelworks.core.nouns import Job

BODY = {"base": "org/base", "models": ["one", "two"], "params": {"density": 0.2}}


@dataclass
class FakeMaker:
    bodies: list[Mapping[str, Any]] = field(default_factory=list)

    def merge(self, body: Mapping[str, Any]) -> LiveMerge:
        if "broken" in body:
            raise Invalid("broken: unknown key")
        self.bodies.append(body)
        return LiveMerge(name=body["name"], seconds=0.5, tensors_merged=3, task_vector_norms={"one": 1.0})

    def queue(self, body: Mapping[str, object]) -> Job:
        raise Invalid(f"{body['name']!r} exists already")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("method", "slerp", {"method": "slerp"}),
        ("params.density", 0.5, {"params": {"density": 0.5}}),
        ("params.lambda", 2, {"params": {"density": 0.2, "lambda": 2}}),
        ("weights.1", 0.3, {"weights": [1.0, 0.3]}),
        ("model_params.0.density", 0.1, {"model_params": [{"density": 0.1}, {}]}),
        ("models.1", "three", {"models": ["one", "three"]}),
    ],
)
def test_a_recipe_is_changed_at_one_place(path: str, value: object, expected: dict[str, object]) -> None:
    before = str(BODY)

    assert changed(BODY, path, value) == BODY | expected
    assert str(BODY) == before


@pytest.mark.parametrize("path", ["weights.2", "weights.first", "base.name", "params.density.x"])
def test_a_place_that_is_none_is_named(path: str) -> None:
    with pytest.raises(Invalid, match=path):
        changed(BODY, path, 1)


def test_orders_change_the_recipe_and_what_fails_leaves_it(capsys: pytest.CaptureFixture[str]) -> None:
    maker = FakeMaker()
    live = LiveRecipe(Session(), maker, "live/base-1", dict(BODY))

    assert [live.obey(line) for line in ("/set params.density 0.5", "/set broken 1", "/set", "/save", "/save one")] == [
        True
    ] * 5
    assert not live.obey("What is /set?")

    assert live.body == BODY | {"params": {"density": 0.5}}
    assert maker.bodies == [live.body | {"name": "live/base-1"}]
    told = capsys.readouterr().err
    for said in ("merged 3 tensors in 0.50 s", "broken: unknown key", "e.g. /set", "e.g. /save", "'one' exists"):
        assert said in told


@pytest.mark.parametrize("named", [{"name": "me/both"}, {"base": "/models/base/"}, {"method": "average"}, {}])
def test_every_conversation_has_a_name_of_its_own(named: dict[str, str]) -> None:
    first, second = live_name(named), live_name(named)

    assert first != second
    assert check_name(first).startswith("live/")
