"""What came of a search: the leaderboard as a table, and a picture of all trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.search.goals import Goal, front, ranked
from modelworks.search.trials import Trial

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 640, 360, 64, 44, 16


def leaderboard(goals: Sequence[Goal], trials: Sequence[Trial]) -> list[JsonObject]:
    """A row a trial, best first."""
    ahead = {trial.number for trial in front(goals, trials)}
    rows: list[JsonObject] = []
    for rank, trial in enumerate(ranked(goals, trials), start=1):
        goals_met: JsonObject = {goal.label: goal.of(trial.measured) for goal in goals}
        row: JsonObject = {"rank": rank, "trial": trial.number, "goals": goals_met, "point": trial.point}
        row |= {"on_front": trial.number in ahead} if len(goals) > 1 else {}
        rows.append(row | {"seconds": round(trial.seconds, 3)} | ({"problem": trial.problem} if trial.problem else {}))
    return rows


def picture(goals: Sequence[Goal], trials: Sequence[Trial]) -> str:
    """The trials as SVG: with one goal along their numbers, with more in the plane of the first two.

    The recipe is a hollow square, the winner a ring. The line is the best so far, or the Pareto front.
    """
    several = len(goals) > 1
    across, up = (goals[0], goals[1]) if several else (None, goals[0])
    dots = [
        (trial, float(trial.number) if across is None else x, y)
        for trial in trials
        if (y := up.of(trial.measured)) is not None
        and (x := 0.0 if across is None else across.of(trial.measured)) is not None
    ]
    if not dots:
        return ""
    plane = _Plane([x for _, x, _ in dots], [y for _, _, y in dots])
    ahead = {trial.number for trial in front(goals, trials)}
    best = ranked(goals, trials)[0].number
    if several:
        line = sorted((x, y) for trial, x, y in dots if trial.number in ahead)
    else:
        line = [(x, _best(up, [height for _, place, height in dots if place <= x])) for _, x, _ in dots]
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        *plane.frame(across.label if across else "trial", up.label),
        f'<polyline fill="none" stroke="#08306b" points="{" ".join(plane.place(*point) for point in line)}"/>',
    ]
    for trial, x, y in dots:
        left, top = plane.place(x, y).split(",")
        told = ", ".join(f"{goal.label} {goal.of(trial.measured):.4g}" for goal in goals)
        at = ", ".join(f"{path}={_short(value)}" for path, value in trial.point.items()) or "the recipe as it stands"
        title = f"<title>{escape(f'trial {trial.number}: {told} ({at})')}</title>"
        ring = f'<circle cx="{left}" cy="{top}" r="8" fill="none" stroke="#cb181d" stroke-width="2"/>'
        if trial.number == 0:
            square = f'x="{float(left) - 4:g}" y="{float(top) - 4:g}" width="8" height="8"'
            body.append(f'<rect {square} fill="#fff" stroke="#222" stroke-width="2">{title}</rect>')
        else:
            fill = "#08306b" if trial.number in ahead else "#9ecae1"
            body.append(f'<circle cx="{left}" cy="{top}" r="4" fill="{fill}">{title}</circle>')
        body += [ring] if trial.number == best else []
    return "\n".join([*body, "</svg>", ""])


def _short(value: JsonValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _best(goal: Goal, values: Sequence[float]) -> float:
    return max(values) if goal.metric.better == "higher" else min(values)


class _Plane:
    """Where values lie in the picture."""

    def __init__(self, across: Sequence[float], up: Sequence[float]) -> None:
        self._x, self._y = _Scale(across), _Scale(up)

    def place(self, x: float, y: float) -> str:
        left = _LEFT + self._x.share(x) * (_WIDTH - _LEFT - _MARGIN)
        return f"{left:.1f},{_HEIGHT - _BOTTOM - self._y.share(y) * (_HEIGHT - _BOTTOM - _MARGIN):.1f}"

    def frame(self, across: str, up: str) -> list[str]:
        bottom, middle = _HEIGHT - _BOTTOM, (_HEIGHT - _BOTTOM) / 2
        x, y = self._x, self._y
        return [
            f'<path d="M{_LEFT},{_MARGIN}V{bottom}H{_WIDTH - _MARGIN}" fill="none" stroke="#888"/>',
            f'<text x="{_LEFT}" y="{bottom + 16}">{x.low:.4g}</text>',
            f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">{x.high:.4g}</text>',
            f'<text x="{(_LEFT + _WIDTH) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(across)}</text>',
            f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{y.low:.4g}</text>',
            f'<text x="{_LEFT - 6}" y="{_MARGIN + 8}" text-anchor="end">{y.high:.4g}</text>',
            f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
        ]


class _Scale:
    """One direction; what lies more than ten times as far above the least as the median is drawn at the end."""

    def __init__(self, values: Sequence[float]) -> None:
        ordered = sorted(values)
        self.low = ordered[0]
        most = self.low + 10 * (ordered[len(ordered) // 2] - self.low)
        self.high = max(value for value in ordered if value <= most) if most > self.low else ordered[-1]
        if math.isclose(self.low, self.high):
            self.high = self.low + (abs(self.low) or 1.0) / 10

    def share(self, value: float) -> float:
        return min(1.0, (value - self.low) / (self.high - self.low))
