"""A search from beginning to end: trials in memory, then the best one merged for real and published."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid
from modelworks.core.nouns import Draft, JsonObject, Parent
from modelworks.merge.run import run as merge_and_publish
from modelworks.merge.spec import MergeSpec
from modelworks.search.bench import Bench
from modelworks.search.board import leaderboard, picture
from modelworks.search.goals import Goal, Measures, goals_of, ranked
from modelworks.search.plan import check
from modelworks.search.sampling import suggest
from modelworks.search.space import Axis, recipe_at
from modelworks.search.spec import SearchSpec
from modelworks.search.trials import Trial, TrialLog

BOARD, PICTURE = "search.json", "search.svg"


def run(spec: SearchSpec, job: JobContext) -> JsonObject:
    """Try, report and publish.

    The best is chosen on one half of the held-out rows and reported, beside the recipe as it was, on the other half:
    what was chosen for being best looks better on the rows it was chosen by than it is.

    Raises:
        Invalid: something is wrong with the spec, or no trial could be measured.
    """
    started = time.monotonic()
    axes, goals = check(spec, job.inputs), goals_of(spec)
    log = TrialLog(job.checkpoints / "trials.jsonl", _digest_of(spec, job))
    bench = Bench(spec, job)
    _try_all(spec, job, axes, goals, bench, log)
    best = ranked(goals, log.trials)[0]
    if best.problem:
        raise Invalid(f"no trial could be measured; the recipe itself: {best.problem}")
    winner = recipe_at(spec.recipe, best.point) if best.number else spec.recipe
    found = _summary(goals, log.trials, best) | {"held_out": _report(spec, job, goals, bench, winner)}
    del bench
    board, drawn = leaderboard(goals, log.trials), picture(goals, log.trials)

    def finish(draft: Draft) -> Draft:
        """The search beside the model, and in its lineage the rows that chose it."""
        written = json.dumps(found | {"leaderboard": list(board)}, indent=2, ensure_ascii=False)
        (draft.folder / BOARD).write_text(written + "\n", encoding="utf-8")
        (draft.folder / PICTURE).write_text(drawn, encoding="utf-8")
        judges = [job.inputs[name] for name in spec.datasets]
        parents = tuple(Parent.of("evaluation", item) for item in judges)
        metrics = {goal.label: value for goal in goals if (value := goal.of(best.measured)) is not None}
        return replace(
            draft,
            parents=draft.parents + parents,
            # Made again as a plain merge, it is the same model.
            recipe=draft.recipe | {"search": spec.model_dump(mode="json")},
            metrics=draft.metrics | metrics,
        )

    named = winner.model_copy(update={"name": spec.published_name, "replace": spec.replace})
    merged = merge_and_publish(named, job, finish=finish)
    seconds = round(time.monotonic() - started, 3)
    return {"name": merged["name"], "seconds": seconds} | found | {
        "leaderboard": list(board), "picture": drawn, "merge": merged,
    }  # fmt: skip


def _try_all(
    spec: SearchSpec, job: JobContext, axes: Sequence[Axis], goals: Sequence[Goal], bench: Bench, log: TrialLog
) -> None:
    total = spec.trials + 1
    if log.trials:
        job.log(f"going on behind trial {log.trials[-1].number}")

    def tell(done: float) -> None:
        mean = sum(trial.seconds for trial in log.trials) / max(len(log.trials), 1)
        eta: JsonObject = {"eta_seconds": round(mean * (total - done), 1)} if log.trials else {}
        job.progress(round(done, 3), total, "trials", stage="searching", **eta)

    while (number := len(log.trials)) < total:
        point = suggest(axes, goals, log.trials, spec.seed) if number else {axis.path: axis.start for axis in axes}
        trial = _tried(spec, bench, goals, number, point, tell)
        log.append(trial)
        if trial.problem:
            job.log(f"trial {number} failed: {trial.problem}", "warning")
        elif number and ranked(goals, log.trials)[0] is trial:
            told = ", ".join(f"{name} {value:.4g}" for name, value in _met(goals, trial.measured).items())
            job.log(f"trial {number} is the best so far: {told}")
        job.metric(number, **{name: value for name, value in _met(goals, trial.measured).items() if value is not None})
        tell(number + 1)


def _tried(
    spec: SearchSpec, bench: Bench, goals: Sequence[Goal], number: int, point: JsonObject, tell: Callable[[float], None]
) -> Trial:
    started = time.monotonic()
    measured: dict[str, dict[str, float]] = {}
    problem = ""
    try:
        bench.merge(recipe_at(spec.recipe, point if number else {}))
    except Invalid as error:
        problem = error.message
    else:
        measured = bench.measure("choose", lambda share: tell(number + share))
        problem = "it has no finite measure" if None in _met(goals, measured).values() else ""
    return Trial(number=number, point=point, measured=measured, seconds=time.monotonic() - started, problem=problem)


def _report(spec: SearchSpec, job: JobContext, goals: Sequence[Goal], bench: Bench, best: MergeSpec) -> JsonObject:
    """The recipe and the best on the rows that nothing was chosen by."""
    found: JsonObject = {}
    losses: dict[str, list[float]] = {}
    for name, recipe in (("recipe", spec.recipe), ("winner", best)):
        if name == "winner" and recipe is spec.recipe:
            return found | {name: found["recipe"]}
        try:
            bench.merge(recipe)
            measured: Measures = bench.measure(
                "report", lambda share: job.progress(round(share, 3), 1, "measurements", stage="reporting")
            )
        except Invalid:  # the recipe may fail where its winner does not
            measured = {}
        found[name] = dict(_met(goals, measured))
        losses[name] = [goal.loss(measured) for goal in goals]
    worse = [goal.label for goal, now, was in zip(goals, losses["winner"], losses["recipe"], strict=True) if now > was]
    if worse:
        job.log(f"on rows it was not chosen on the best is worse in {', '.join(worse)}: choose by more rows", "warning")
    return found


def _summary(goals: Sequence[Goal], trials: Sequence[Trial], best: Trial) -> JsonObject:
    return {
        "trials": len(trials),
        "best_trial": best.number,
        "best_point": best.point,
        "goals": [{"name": goal.label, "better": goal.metric.better} for goal in goals],
        "chosen_on": {"recipe": dict(_met(goals, trials[0].measured)), "winner": dict(_met(goals, best.measured))},
        "rows": "chosen by the even rows of what is held out, reported in held_out on the odd ones",
    }


def _met(goals: Sequence[Goal], measured: Measures) -> dict[str, float | None]:
    return {goal.label: goal.of(measured) for goal in goals}


def _digest_of(spec: SearchSpec, job: JobContext) -> str:
    """Of all that a trial's outcome depends on; more of them may be asked for later."""
    asked = spec.model_dump(mode="json", exclude={"trials", "name", "replace"})
    inputs = {name: item.digest for name, item in job.inputs.items()}
    return hashlib.sha256(json.dumps([asked, inputs], sort_keys=True).encode()).hexdigest()
