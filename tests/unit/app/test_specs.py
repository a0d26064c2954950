from __future__ import annotations

from modelworks.app.kinds import KINDS
from modelworks.app.specs import spec_of


def test_every_kind_of_job_has_the_spec_that_commands_find() -> None:
    assert {name: spec_of(name) for name in KINDS} == {name: kind.spec for name, kind in KINDS.items()}
