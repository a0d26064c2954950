"""What a training would take, told before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modelworks.app.kinds import kind_named
from modelworks.app.services import Services
from modelworks.core.spec import parse_spec
from modelworks.train.estimate import Estimate as Estimate
from modelworks.train.estimate import estimate
from modelworks.train.plan import check
from modelworks.train.spec import TrainSpec


def estimate_training(services: Services, body: Mapping[str, object]) -> Estimate:
    """Check a training as its job would be, and say what it would read and take; nothing is queued. Blocks.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    asked = {key: value for key, value in body.items() if key != "sweep"}
    spec = parse_spec(TrainSpec, asked, where="train")
    inputs = services.inputs(kind_named("train"), spec)
    check(spec, inputs)
    told = estimate(spec, inputs)
    return replace(told, notes=(*told.notes, "of one training of the sweep")) if "sweep" in body else told
