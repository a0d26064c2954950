"""A search from beginning to end: trials in memory, then the best one merged for real and published."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

from modelworks.core.context import JobContext
from modelworks.core.errors import Invalid
from modelworks.core.nouns import Draft, JsonObject, Parent
from modelworks.merge.run import run as merge_and_publish
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
        raise Invalid(f"no trial could be measured; the recipe itself: {best.problem}", problems=())
    found = _summary(goals, log.trials, best) | {"held_out": _report(spec, job, goals, bench, best)}
    del bench
    board, drawn = leaderboard(goals, log.trials), picture(goals, log.trials)

    def finish(draft: Draft) -> Draft:
        """The search beside the model, and in its lineage the rows that chose it."""
        written = json.dumps(found | {"leaderboard": list(board)}, indent=2, ensure_ascii=False)
        (draft.folder / BOARD).write_text(written + "\n", encoding="utf-8")
        (draft.folder / PICTURE).write_text(drawn, encoding="utf-8")
        judges = [job.inputs[name] for name in spec.datasets]
        parents = tuple(Parent("evaluation", item.kind, item.id, item.name, item.digest) for item in judges)
        metrics = {goal.label: value for goal in goals if (value := goal.of(best.measured)) is not None}
        return replace(
            draft,
            parents=draft.parents + parents,
            # Made again as a plain merge, it is the same model.
            recipe=draft.recipe | {"search": spec.model_dump(mode="json")},
            metrics=draft.metrics | metrics,
        )

    winner = recipe_at(spec.recipe, best.point)
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
    while len(log.trials) < total:
        number = len(log.trials)
        point = suggest(axes, goals, log.trials, spec.seed) if number else {}
        trial = _tried(spec, job, bench, number, total, point)
        before = ranked(goals, log.trials)[0].number if log.trials else None
        log.append(trial)
        best = ranked(goals, log.trials)[0]
        if trial.problem:
            job.log(f"trial {number} failed: {trial.problem}", "warning")
        elif best.number == number and before is not None:
            job.log(f"trial {number} is the best so far: {_told(goals, trial.measured)}")
        values = {goal.label: value for goal in goals if (value := goal.of(trial.measured)) is not None}
        job.metric(number, **values)
        mean = sum(each.seconds for each in log.trials) / len(log.trials)
        eta = round(mean * (total - len(log.trials)), 1)
        job.progress(len(log.trials), total, "trials", stage="searching", eta_seconds=eta)


def _tried(spec: SearchSpec, job: JobContext, bench: Bench, number: int, total: int, point: JsonObject) -> Trial:
    started = time.monotonic()
    measured: dict[str, dict[str, float]] = {}
    problem = ""
    try:
        bench.merge(recipe_at(spec.recipe, point))
    except Invalid as error:
        problem = error.message
    else:
        measured = bench.measure(
            "choose", lambda share: job.progress(round(number + share, 3), total, "trials", stage="searching")
        )
        problem = "" if all(goal.of(measured) is not None for goal in goals_of(spec)) else "it has no finite measure"
    return Trial(number=number, point=point, measured=measured, seconds=time.monotonic() - started, problem=problem)


def _report(spec: SearchSpec, job: JobContext, goals: Sequence[Goal], bench: Bench, best: Trial) -> JsonObject:
    """The recipe and the best on the rows that nothing was chosen by."""
    found: JsonObject = {}
    for name, point in (("recipe", {}), ("winner", best.point)):
        if name == "winner" and not point:
            found["winner"] = found["recipe"]
            break
        try:
            bench.merge(recipe_at(spec.recipe, point))
            measured: Measures = bench.measure(
                "report", lambda share: job.progress(round(share, 3), 1, "measurements", stage="reporting")
            )
        except Invalid:  # the recipe itself may fail where its winner does not
            measured = {}
        found[name] = {goal.label: goal.of(measured) for goal in goals}
    return found


def _summary(goals: Sequence[Goal], trials: Sequence[Trial], best: Trial) -> JsonObject:
    chosen_on: JsonObject = {
        "recipe": {goal.label: goal.of(trials[0].measured) for goal in goals},
        "winner": {goal.label: goal.of(best.measured) for goal in goals},
    }
    return {
        "trials": len(trials),
        "best_trial": best.number,
        "best_point": best.point,
        "goals": [{"name": goal.label, "better": goal.metric.better} for goal in goals],
        "chosen_on": chosen_on,
        "rows": "chosen by the even rows of what is held out, reported in held_out on the odd ones",
    }


def _told(goals: Sequence[Goal], measured: Measures) -> str:
    return ", ".join(f"{goal.label} {goal.of(measured):.4g}" for goal in goals)


def _digest_of(spec: SearchSpec, job: JobContext) -> str:
    """Of all that a trial's outcome depends on; more of them may be asked for later."""
    asked = spec.model_dump(mode="json", exclude={"trials", "name", "replace"})
    inputs = {name: item.digest for name, item in job.inputs.items()}
    return hashlib.sha256(json.dumps([asked, inputs], sort_keys=True).encode()).hexdigest()
