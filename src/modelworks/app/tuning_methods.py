"""How a fine-tuning job of the OpenAI API is to learn: its methods, and their words as a training's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field

from modelworks.core.errors import Invalid, Problem, Unsupported
from modelworks.core.nouns import JsonObject
from modelworks.core.spec import Spec, parse_spec
from modelworks.train.graders import Grader

# Rows computed together; a larger batch is added up.
ROWS_AT_ONCE = 8
# In reinforcement, with a compute_multiplier of 1.
ANSWERS_A_PROMPT = 4

T = TypeVar("T")
Auto = Annotated[T | None, BeforeValidator(lambda value: None if value == "auto" else value)]


class Hyperparameters(Spec):
    n_epochs: Auto[Annotated[int, Field(ge=1, le=50)]] = None
    batch_size: Auto[Annotated[int, Field(ge=1, le=256)]] = None
    learning_rate_multiplier: Auto[Annotated[float, Field(gt=0)]] = None


class DpoHyperparameters(Hyperparameters):
    beta: Auto[Annotated[float, Field(gt=0, le=2)]] = None


class ReinforcementHyperparameters(Hyperparameters):
    compute_multiplier: Auto[Annotated[float, Field(gt=0, le=16)]] = None
    eval_interval: Auto[Annotated[int, Field(ge=1)]] = None
    eval_samples: Auto[Annotated[int, Field(ge=1)]] = None
    reasoning_effort: Literal["default"] | None = None


class Supervised(Spec):
    hyperparameters: Hyperparameters = Hyperparameters()


class Dpo(Spec):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class Reinforcement(Spec):
    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()


class Method(Spec):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None


STRATEGIES: Mapping[type[Hyperparameters], str] = {
    Hyperparameters: "sft", DpoHyperparameters: "dpo", ReinforcementHyperparameters: "grpo",
}  # fmt: skip


class _Graded(Spec):
    grader: Grader


def chosen(method: Method | None, alone: Hyperparameters | None) -> Hyperparameters:
    """Those of a method, or those that stand alone; raises Invalid or Unsupported for what is not done here."""
    if method is None:
        return alone or Hyperparameters()
    for other in ("supervised", "dpo", "reinforcement"):
        if other != method.type and getattr(method, other) is not None:
            raise refused(Invalid, Problem(f"method.{other}", f"the type is {method.type}", "give one method"))
    if method.type == "reinforcement":
        found: Hyperparameters = _with_grader(method.reinforcement).hyperparameters
    else:
        found = (method.supervised or method.dpo or (Dpo if method.type == "dpo" else Supervised)()).hyperparameters
    if alone is not None:
        raise refused(Invalid, Problem("hyperparameters", "are those of a method too", "give them in the method alone"))
    return found


def training_words(asked: Hyperparameters) -> JsonObject:
    words: JsonObject = {"strategy": STRATEGIES[type(asked)]}
    if isinstance(asked, ReinforcementHyperparameters):
        return words | _reinforcement_words(asked)
    if asked.n_epochs is not None:
        words["num_train_epochs"] = asked.n_epochs
    if asked.batch_size is not None:
        rows = next(rows for rows in range(ROWS_AT_ONCE, 0, -1) if asked.batch_size % rows == 0)
        words |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": asked.batch_size // rows}
    if isinstance(asked, DpoHyperparameters) and asked.beta is not None:
        words["params"] = {"beta": asked.beta}
    return words


def _reinforcement_words(asked: ReinforcementHyperparameters) -> JsonObject:
    """Their batch is of prompts, ours of answers: each prompt is computed with all of its own."""
    answers = max(2, round(ANSWERS_A_PROMPT * (asked.compute_multiplier or 1)))
    params: JsonObject = {"num_generations": answers}
    if asked.eval_samples is not None:
        params["eval_samples"] = asked.eval_samples
    words: JsonObject = {
        "params": params, "per_device_train_batch_size": answers, "gradient_accumulation_steps": asked.batch_size or 2,
    }  # fmt: skip
    if asked.n_epochs is not None:
        words["num_train_epochs"] = asked.n_epochs
    if asked.eval_interval is not None:
        words["eval_steps"] = asked.eval_interval
    return words


def _with_grader(asked: Reinforcement | None) -> Reinforcement:
    where = "method.reinforcement.grader"
    if asked is None:
        raise refused(Invalid, Problem(where, "is missing", "say what a good answer is"))
    kinds = {str(each.get("type")) for each in (asked.grader, *_graders_in(asked.grader))}
    for kind, why in (("python", "no code of a caller's is run here"), ("score_model", "no model is asked here")):
        if kind in kinds:
            raise refused(
                Unsupported, Problem(where, f"type {kind}: {why}", "use string_check, text_similarity or multi")
            )
    parse_spec(_Graded, {"grader": asked.grader}, where="method.reinforcement")
    return asked


def _graders_in(grader: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner = grader.get("graders")
    return [each for each in inner.values() if isinstance(each, dict)] if isinstance(inner, dict) else []


def refused(kind: type[Invalid | Unsupported], *problems: Problem) -> Invalid | Unsupported:
    return kind("; ".join(str(problem) for problem in problems), problems=problems)
