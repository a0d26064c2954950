"""What came of a sweep: its trainings from best to worst, and their losses in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.core.svg import HEIGHT, WIDTH, Plane, page
from modelworks.search.sweep import label

# What trainings are compared by where nobody says it: the first that one of them measured.
_USUAL = ("loss", "eval_loss", "reward", "train_loss")
# Of every other metric, less is better.
_HIGHER = ("accura", "reward", "margin")
_SMOOTH, _NAMED, _LINE = 0.8, 8, 14


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one training of a sweep ended."""

    name: str
    job_id: str
    state: str
    values: JsonObject
    # Empty unless it succeeded.
    metrics: dict[str, float]
    # Pairs of step and loss.
    course: Sequence[tuple[float, float]]
    seconds: float | None
    problem: str = ""


def metric_of(outcomes: Sequence[Outcome], asked: str | None) -> str | None:
    """What to compare by; None where nothing was measured."""
    known = {name for each in outcomes for name, value in each.metrics.items() if math.isfinite(value)}
    return next((name for name in (asked, *_USUAL) if name in known), None)


def better(metric: str) -> Literal["lower", "higher"]:
    return "higher" if any(word in metric for word in _HIGHER) else "lower"


def ranked(outcomes: Sequence[Outcome], metric: str | None) -> list[Outcome]:
    """Best first; what has no finite number comes last."""
    sign = -1 if metric is not None and better(metric) == "higher" else 1

    def place(outcome: Outcome) -> float:
        value = outcome.metrics.get(metric or "", math.nan)
        return sign * value if math.isfinite(value) else math.inf

    return sorted(outcomes, key=place)


def table(ranking: Sequence[Outcome]) -> list[JsonValue]:
    rows: list[JsonValue] = []
    for outcome in ranking:
        numbers: JsonObject = {name: value for name, value in outcome.metrics.items() if math.isfinite(value)}
        row: JsonObject = {"name": outcome.name, "job": outcome.job_id, "state": outcome.state}
        row |= {"values": outcome.values, "metrics": numbers, "seconds": outcome.seconds}
        rows.append(row | ({"problem": outcome.problem} if outcome.problem else {}))
    return rows


def picture(ranking: Sequence[Outcome]) -> str:
    """Training losses as SVG, smoothed as on the dashboard: the best in red, then from dark to light."""
    courses = [(outcome, _smoothed(outcome.course)) for outcome in ranking if outcome.course]
    if not courses:
        return ""
    points = [point for _, course in courses for point in course]
    plane = Plane([step for step, _ in points], [loss for _, loss in points])
    lines, names = [], []
    for place, (outcome, course) in enumerate(courses):
        colour = "#cb181d" if place == 0 else _blue((place - 1) / max(1, len(courses) - 2))
        told = f"{outcome.name}: {label(outcome.values)}"
        lines.append(plane.line(course, colour, 2.5 if place == 0 else 1.2, told))
        if place < _NAMED:
            where = f'x="{WIDTH - 20}" y="{28 + _LINE * place}" text-anchor="end"'
            names.append(f'<text {where} fill="{colour}">{escape(told)}</text>')
    # The best is drawn last, over the others.
    return page(WIDTH, HEIGHT, [*plane.frame("step", "training loss"), *reversed(lines), *names])


def _smoothed(course: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The running mean, unbiased at the start."""
    mean, weight, found = 0.0, 0.0, []
    for step, loss in sorted(dict(course).items()):
        if math.isfinite(loss):
            mean, weight = _SMOOTH * mean + (1 - _SMOOTH) * loss, _SMOOTH * weight + 1 - _SMOOTH
            found.append((step, mean / weight))
    return found


def _blue(share: float) -> str:
    red, green, blue = (round(dark + share * (light - dark)) for dark, light in ((8, 158), (48, 202), (107, 225)))
    return f"rgb({red},{green},{blue})"
