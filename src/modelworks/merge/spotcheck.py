"""What headers cannot tell of the models of a merge: found in a small sample of their weights, before the merge."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from modelworks.core.errors import Invalid, Problem
from modelworks.merge.arrays import Array, library
from modelworks.merge.engine import one_thread
from modelworks.merge.findings import labels
from modelworks.merge.pieces import Pieces, Watch, needs_torch
from modelworks.merge.plan import Plan, Step, spans

TENSORS, ELEMENTS = 12, 4096
# Fine-tuning turns weights by a few degrees; between models trained apart the cosine is near 0.
LEAST_COSINE = 0.6


@dataclass
class _Sampled:
    """One model's sample: what it has in common with the one that the others are measured by, and a hash of it."""

    dot: float = 0.0
    square: float = 0.0
    reference: float = 0.0
    hash: Any = field(default_factory=hashlib.blake2b)

    @property
    def cosine(self) -> float:
        return self.dot / (self.square * self.reference) ** 0.5 if self.square and self.reference else 1.0


def spot_check(plan: Plan, watch: Watch, strict: bool = False) -> list[str]:
    """Look at some blocks of rows of a dozen tensors; return what is doubtful about the models.

    Args:
        strict: whether what is doubtful is an error.

    Raises:
        Invalid: there are values that are NaN or infinite, or a doubt in `strict`.
    """
    names = labels(plan.experts)
    whose = plan.base.model.name if plan.base is not None else names[0]
    sampled: defaultdict[str, _Sampled] = defaultdict(_Sampled)
    problems: dict[str, Problem] = {}
    by_torch = needs_torch(plan, "cpu")
    with one_thread(by_torch), ExitStack() as stack:
        pieces = Pieces(plan, watch, "cpu", stack)
        for step, start, stop in _blocks(plan, in_rows=by_torch):
            watch.check()
            base, models = pieces.at_hand(step, start, stop)
            rows = {names[source.expert]: row for source, row in zip(step.sources, models, strict=True)}
            if base is not None:
                rows = {whose: base, **rows}
            for name, row in rows.items():
                problem = _not_finite(name, step, start, row)
                if problem is not None:
                    problems.setdefault(name, problem)
            if len(step.output.shape) > 1 and not problems:  # the scales of norms are alike in all models
                _compare(rows, whose, sampled)
    doubts = list(_doubts(sampled, whose))
    if strict and not problems:
        problems = {name: Problem(name, what, remedy, code) for name, what, remedy, code in doubts}
    if problems:
        found = tuple(problems.values())
        raise Invalid("; ".join(map(str, found)), problems=found)
    return [f"{name} {what}; {remedy}" for name, what, remedy, _ in doubts]


def _blocks(plan: Plan, *, in_rows: bool) -> Iterator[tuple[Step, int, int]]:
    """Of tensors from the first to the last, the first run of elements, the next, and so on."""
    steps = [step for step in plan.steps if step.merged and step.elements]
    count = min(TENSORS, len(steps))
    for number in range(count):
        step = steps[number * (len(steps) - 1) // max(count - 1, 1)]
        runs = list(spans(step.output.shape if in_rows else (step.elements,), ELEMENTS))
        yield step, *runs[number * (len(runs) - 1) // max(count - 1, 1)]


def _not_finite(name: str, step: Step, start: int, row: Array) -> Problem | None:
    bad = library(row).flatnonzero(~library(row).isfinite(row))
    if not len(bad):
        return None
    what = f"{step.output.name} is {row[bad[0]].item()} at element {start + int(bad[0])}"
    return Problem(name, what, "the model is broken: fetch or train it again", "not_finite")


def _compare(rows: dict[str, Array], whose: str, sampled: defaultdict[str, _Sampled]) -> None:
    reference = rows[whose].astype("float64") if whose in rows else None
    for name, row in rows.items():
        seen = sampled[name]
        seen.hash.update(row.tobytes())
        if reference is not None:
            # No products of vectors: the threads that numpy makes them with take longer to start.
            wide = row.astype("float64")
            seen.dot += float((wide * reference).sum())
            seen.square += float((wide * wide).sum())
            seen.reference += float((reference * reference).sum())


def _doubts(sampled: dict[str, _Sampled], whose: str) -> Iterator[tuple[str, str, str, str]]:
    """Model, what is doubtful about it, what to do, code."""
    first: dict[bytes, str] = {}
    for name, seen in sampled.items():
        if seen.cosine < LEAST_COSINE:
            distance = (seen.square - 2 * seen.dot + seen.reference) ** 0.5 / seen.reference**0.5
            what = (
                f"seems not to be made from {whose}: the cosine of their weights is {seen.cosine:.2f}, and their "
                f"difference is {distance:.2f} times as large as {whose}"
            )
            yield name, what, "name the base that it was made from", "not_derived"
        twin = first.setdefault(seen.hash.digest(), name)
        if twin != name:
            yield name, f"has the weights of {twin} wherever they were looked at", "is it the right one?", "identical"
