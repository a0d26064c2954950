"""What came of a search: the leaderboard as a table, and a picture of all trials."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from modelworks.core.nouns import JsonObject, JsonValue
from modelworks.core.svg import HEIGHT, WIDTH, Plane, page
from modelworks.search.goals import Goal, front, ranked
from modelworks.search.trials import Trial


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
    plane = Plane([x for _, x, _ in dots], [y for _, _, y in dots])
    ahead = {trial.number for trial in front(goals, trials)}
    best = ranked(goals, trials)[0].number
    if several:
        line = sorted((x, y) for trial, x, y in dots if trial.number in ahead)
    else:
        best_of = max if up.metric.better == "higher" else min
        line = [(x, best_of(height for _, place, height in dots if place <= x)) for _, x, _ in dots]
    body = [
        *plane.frame(across.label if across else "trial", up.label),
        plane.line(line, "#08306b"),
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
    return page(WIDTH, HEIGHT, body)


def _short(value: JsonValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
