"""What a training, or a sweep of them, would take, told before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from modelworks.app.kinds import kind_named
from modelworks.app.services import Services
from modelworks.core.spec import parse_spec
from modelworks.search.sweep import SweepSpec, children
from modelworks.train import rate
from modelworks.train.estimate import Estimate as Estimate
from modelworks.train.estimate import estimate, read_rows
from modelworks.train.plan import check
from modelworks.train.spec import TrainSpec


def estimate_training(services: Services, body: Mapping[str, object]) -> Estimate:
    """Check a training as its job would be, and say what it would read and take; nothing is queued. Blocks.

    Of a sweep it is told of the training that takes the most memory, with the disk and the seconds of all.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    if not {"sweep", "sweep_metric"} & body.keys():
        return _told(services, parse_spec(TrainSpec, body, where="train"))
    spec = parse_spec(SweepSpec, body, where="sweep")
    trainings = children(spec, spec.published_name)
    # Most of them read the same rows.
    once = {"read": cache(read_rows), "measure": cache(rate.measured)}
    told = [_told(services, each.spec, **once) for each in trainings]
    most = max(range(len(told)), key=lambda each: told[each].memory_bytes)
    seconds = [each.seconds for each in told if each.seconds is not None]
    note = (
        f"{len(told)} trainings: disk and seconds are of all, one after another; the rest is of "
        f"{trainings[most].label}, which takes the most memory"
    )
    return replace(
        told[most], disk_bytes=sum(each.disk_bytes for each in told), notes=(*told[most].notes, note),
        seconds=round(sum(seconds), 1) if len(seconds) == len(told) else None,
    )  # fmt: skip


def _told(services: Services, spec: TrainSpec, **once: Any) -> Estimate:
    inputs = services.inputs(kind_named("train"), spec)
    check(spec, inputs)
    return estimate(spec, inputs, **once)
