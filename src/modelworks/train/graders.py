"""Graders as the OpenAI API writes them: how good an answer is, by comparing texts and by arithmetic."""

from __future__ import annotations

import ast
import difflib
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from modelworks.core.errors import Problem
from modelworks.core.spec import Spec
from modelworks.data.prompts import Prompt
from modelworks.train.rewards import RewardFailed

_PLACE = re.compile(r"\{\{\s*(sample|item)\.([^{}]+?)\s*\}\}")


class StringCheck(Spec):
    type: Literal["string_check"]
    name: str = "string_check"
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]

    def grade(self, answer: str, item: Mapping[str, JsonValue]) -> float:
        found, wanted = fill(self.input, answer, item), fill(self.reference, answer, item)
        match self.operation:
            case "eq":
                return float(found == wanted)
            case "ne":
                return float(found != wanted)
            case "like":
                return float(wanted in found)
            case _:
                return float(wanted.lower() in found.lower())


class TextSimilarity(Spec):
    type: Literal["text_similarity"]
    name: str = "text_similarity"
    input: str
    reference: str
    evaluation_metric: Literal[
        "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
    ]

    def grade(self, answer: str, item: Mapping[str, JsonValue]) -> float:
        found, wanted = fill(self.input, answer, item), fill(self.reference, answer, item)
        if self.evaluation_metric == "fuzzy_match":
            return difflib.SequenceMatcher(None, found, wanted, autojunk=False).ratio()
        words = found.lower().split(), wanted.lower().split()
        if self.evaluation_metric in {"bleu", "gleu"}:
            return (_bleu if self.evaluation_metric == "bleu" else _gleu)(*words)
        length = self.evaluation_metric.removeprefix("rouge_")
        return _rouge_l(*words) if length == "l" else _rouge_n(*words, int(length))


class Multi(Spec):
    type: Literal["multi"]
    name: str = "multi"
    graders: dict[str, Annotated[StringCheck | TextSimilarity, Field(discriminator="type")]] = Field(min_length=1)
    calculate_output: str = Field(max_length=1000)

    def grade(self, answer: str, item: Mapping[str, JsonValue]) -> float:
        grades = {name: grader.grade(answer, item) for name, grader in self.graders.items()}
        try:
            found = float(_value(ast.parse(self.calculate_output.strip(), mode="eval").body, grades))
        except (ArithmeticError, ValueError, TypeError) as error:
            raise RewardFailed(f"grader {self.name}: {self.calculate_output!r} of {grades}: {error}") from None
        if not math.isfinite(found):
            raise RewardFailed(f"grader {self.name}: {self.calculate_output!r} of {grades} is {found}")
        return found


Grader = Annotated[StringCheck | TextSimilarity | Multi, Field(discriminator="type")]


def judge_by(grader: StringCheck | TextSimilarity | Multi) -> Callable[..., list[float]]:
    def judge(prompts: Sequence[Prompt], _: Sequence[list[int]], texts: Sequence[str]) -> list[float]:
        return [grader.grade(text, prompt.item) for prompt, text in zip(prompts, texts, strict=True)]

    return judge


def check_grader(grader: StringCheck | TextSimilarity | Multi) -> Iterator[Problem]:
    """What is wrong with its templates and its formula, whatever the rows hold."""
    if isinstance(grader, Multi):
        try:
            _value(ast.parse(grader.calculate_output.strip(), mode="eval").body, dict.fromkeys(grader.graders, 1.0))
        except ArithmeticError:
            pass  # of these numbers; others may do
        except (SyntaxError, ValueError, TypeError, RecursionError) as error:
            yield Problem(
                "params.grader.calculate_output", str(error), f"use {', '.join(grader.graders)} and + - * / ** %"
            )
        for each in grader.graders.values():
            yield from check_grader(each)
        return
    for field in ("input", "reference"):
        for place, name in _PLACE.findall(getattr(grader, field)):
            if place == "sample" and name != "output_text":
                yield Problem(
                    f"params.grader.{field}", f"an answer has no {name!r}", "{{sample.output_text}} is its text"
                )


def check_items(grader: StringCheck | TextSimilarity | Multi, prompts: Sequence[Prompt]) -> None:
    """Raises RewardFailed where a row lacks what a template asks for."""
    for prompt in prompts:
        try:
            grader.grade("", prompt.item)
        except KeyError as error:
            has = ", ".join(sorted(prompt.item)) or "nothing but its messages"
            raise RewardFailed(f"row {prompt.row} has no {error}, which the grader asks for; it has {has}") from None
        except RewardFailed:
            pass  # of an empty answer; of others it may tell a number


def fill(template: str, answer: str, item: Mapping[str, JsonValue]) -> str:
    """Put the answer and the row's columns into a template; raises KeyError for a column that is not there."""

    def value(found: re.Match[str]) -> str:
        if found[1] == "sample":
            return answer
        at: Any = item
        for key in found[2].split("."):
            if not isinstance(at, Mapping) or key not in at:
                raise KeyError(f"item.{found[2]}")
            at = at[key]
        return at if isinstance(at, str) else json.dumps(at, ensure_ascii=False)

    return _PLACE.sub(value, template)


def _grams(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1))


def _shared(found: Sequence[str], wanted: Sequence[str], length: int) -> tuple[int, int, int]:
    ours, theirs = _grams(found, length), _grams(wanted, length)
    return (ours & theirs).total(), ours.total(), theirs.total()


def _rouge_n(found: Sequence[str], wanted: Sequence[str], length: int) -> float:
    """F1 of shared n-grams (Lin 2004)."""
    shared, ours, theirs = _shared(found, wanted, length)
    return 2 * shared / (ours + theirs) if ours and theirs else 0.0


def _rouge_l(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004)."""
    lengths = [0] * (len(wanted) + 1)
    for word in found:
        before = 0
        for at, other in enumerate(wanted, start=1):
            before, lengths[at] = lengths[at], before + 1 if word == other else max(lengths[at], lengths[at - 1])
    return 2 * lengths[-1] / (len(found) + len(wanted)) if found and wanted else 0.0


def _bleu(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Geometric mean of the precisions up to 4-grams, smoothed by 1 beyond words, times the brevity penalty.

    Papineni et al. 2002; the smoothing is that of Lin and Och 2004.
    """
    shares = [_shared(found, wanted, length)[:2] for length in range(1, min(4, len(found)) + 1)]
    if not shares or not shares[0][0]:
        return 0.0
    logs = [math.log((shared + (order > 0)) / (total + (order > 0))) for order, (shared, total) in enumerate(shares)]
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - len(wanted) / len(found)))


def _gleu(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The lesser of precision and recall over all n-grams up to 4 (Wu et al. 2016)."""
    shared, ours, theirs = (sum(each) for each in zip(*(_shared(found, wanted, n) for n in range(1, 5)), strict=True))
    return shared / max(ours, theirs) if max(ours, theirs) else 0.0


_OPERATORS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod, ast.Pow: math.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil, "exp": math.exp, "sqrt": math.sqrt,
    "log": math.log,
}  # fmt: skip


def _value(node: ast.AST, names: Mapping[str, float]) -> float:
    """Work out a formula of numbers, names and the operators and functions above; nothing else is run."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, names))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return float(_FUNCTIONS[name](*(_value(each, names) for each in args)))
    raise ValueError(f"{ast.unparse(node)!r} is no name of a grader, no number and no arithmetic")
