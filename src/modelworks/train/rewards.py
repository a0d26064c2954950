"""What an answer is worth: measured against the answer that is known, or by a function in a file of the operator's."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from modelworks.core.errors import Invalid, NotFound, Problem
from modelworks.core.hashing import hash_file
from modelworks.core.nouns import AnyArtifact, File, JsonObject
from modelworks.core.registry import nearest
from modelworks.core.spec import Spec
from modelworks.data.prompts import Prompt

if TYPE_CHECKING:
    from modelworks.train.reward import Judge

# Of the names of a job's inputs, those of reward files.
FILE_PREFIX = "reward:"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class RewardFailed(Invalid):
    """A reward function raised, or gave something other than a number for each answer."""

    code = "reward_failed"


class Reward(Spec):
    """One thing that answers are rewarded for; a string stands for its name."""

    name: str = Field(description="exact_match, contains, number, regex, length, or FILE or FILE:FUNCTION")
    weight: float = Field(1.0, description="what it counts beside the others")
    pattern: str | None = Field(None, description="regex: what an answer is to hold")
    length: int | None = Field(None, ge=1, description="length: characters that an answer is to have")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, body: Any) -> Any:
        return {"name": body} if isinstance(body, str) else body

    @property
    def file(self) -> str:
        return self.name.partition(":")[0]

    @property
    def function(self) -> str:
        return self.name.partition(":")[2] or "reward"


def _number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _regex(text: str, _: str, asked: Reward) -> float:
    import re2  # in linear time, whatever the pattern

    return float(re2.search(asked.pattern or "", text) is not None)


def _length(text: str, _: str, asked: Reward) -> float:
    wanted = asked.length or 1
    return max(0.0, 1 - abs(len(text) - wanted) / wanted)


# From an answer and the one that is known to be good to a number.
BUILT_IN: Mapping[str, Callable[[str, str, Reward], float]] = {
    "exact_match": lambda text, reference, _: float(text.strip() == reference.strip()),
    "contains": lambda text, reference, _: float(reference.strip().casefold() in text.casefold()),
    # The last one of both, as the answers of mathematical data end with it.
    "number": lambda text, reference, _: float(_number(text) is not None and _number(text) == _number(reference)),
    "regex": _regex,
    "length": _length,
}
_NEEDS_REFERENCE = {"exact_match", "contains", "number"}


def files_named(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The reward files of unchecked parameters, as a job's inputs call them."""
    found = params.get("rewards") or ()
    each = found if isinstance(found, list | tuple) else (found,)
    names = (item.get("name") if isinstance(item, Mapping) else item for item in each)
    files = (name.partition(":")[0] for name in names if isinstance(name, str) and name not in BUILT_IN)
    return tuple(dict.fromkeys(FILE_PREFIX + name for name in files))


def check_rewards(rewards: Sequence[Reward], inputs: Mapping[str, AnyArtifact]) -> Iterator[Problem]:
    """What is wrong with them, found without running anybody's code."""
    for reward in rewards:
        where = f"params.rewards, {reward.name}"
        if reward.name in BUILT_IN:
            if reward.name == "length" and reward.length is None:
                yield Problem(where, "needs a length", 'write {"name": "length", "length": 200}')
            if reward.name == "regex":
                yield from _pattern_problems(where, reward.pattern)
            continue
        try:
            known = [node.name for node in _parsed(_file(reward, inputs)).body if isinstance(node, ast.FunctionDef)]
        except RewardFailed as error:
            yield Problem(where, error.message)
            continue
        if reward.function not in known:
            public = [name for name in known if not name.startswith("_")]
            yield Problem(
                where, f"the file has no function {reward.function}", f"it has {', '.join(public) or 'no function'}"
            )


def judge_of(reward: Reward, inputs: Mapping[str, AnyArtifact]) -> Judge:
    """Raises RewardFailed for a file that cannot be imported."""
    if reward.name not in BUILT_IN:
        return _judge_by_file(reward, _file(reward, inputs))
    rate = BUILT_IN[reward.name]
    known = reference_of if reward.name in _NEEDS_REFERENCE else lambda _: ""

    def judge(prompts: Sequence[Prompt], _: Sequence[list[int]], texts: Sequence[str]) -> list[float]:
        return [rate(text, known(prompt), reward) for prompt, text in zip(prompts, texts, strict=True)]

    return judge


def check_references(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> None:
    """Raises Invalid where a reward compares with an answer that a row does not tell."""
    if any(reward.name in _NEEDS_REFERENCE for reward in rewards):
        for prompt in prompts:
            reference_of(prompt)


def reference_of(prompt: Prompt) -> str:
    found = prompt.item.get("reference", prompt.item.get("answer"))
    if found is None or isinstance(found, dict | list):
        raise Invalid(f"row {prompt.row} tells no answer to compare with; give every row a column reference, as text")
    return str(found)


def _judge_by_file(reward: Reward, file: File) -> Judge:
    """Call a function as TRL does: the turns of each prompt, those of each answer, and the row's other columns."""
    space: dict[str, Any] = {"__name__": f"reward_{reward.file}", "__file__": str(file.place)}
    try:
        exec(compile(_parsed(file), str(file.place), "exec"), space)  # the operator named this file
    except Exception as error:
        raise RewardFailed(f"{file.place} cannot be imported: {type(error).__name__}: {error}") from error
    function = space[reward.function]

    def ask(prompts: Sequence[Prompt], ids: Sequence[list[int]], texts: Sequence[str]) -> list[Any]:
        names = {name for prompt in prompts for name in prompt.item}
        columns: dict[str, Any] = {name: [prompt.item.get(name) for prompt in prompts] for name in sorted(names)}
        columns["prompts"] = [[_turn(turn.role, turn.content) for turn in prompt.messages] for prompt in prompts]
        columns["completions"] = [[_turn("assistant", text)] for text in texts]
        found = list(function(**columns, completion_ids=list(ids)))
        if len(found) != len(prompts):
            raise ValueError(f"gave {len(found)} rewards for {len(prompts)} answers")
        return found

    def judge(prompts: Sequence[Prompt], ids: Sequence[list[int]], texts: Sequence[str]) -> list[float]:
        try:
            found = ask(prompts, ids, texts)
        except Exception as error:
            rows = sorted({prompt.row for prompt in prompts})
            what = f"{type(error).__name__}: {error}" if type(error) is not ValueError else str(error)
            raise RewardFailed(f"{reward.name} failed on answers to rows {rows}: {what}") from error
        for prompt, text, value in zip(prompts, texts, found, strict=True):
            # None: TRL's word for a reward that does not apply to this row.
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise RewardFailed(
                    f"{reward.name} gave {value!r} for the answer {text[:80]!r} to row {prompt.row}; "
                    "a reward is a finite number"
                )
        return found

    return judge


def _parsed(file: File) -> ast.Module:
    if hash_file(file.place) != file.files[0].sha256:
        raise RewardFailed(f"{file.place} is no longer what it was when the job was accepted; submit the job again")
    try:
        return ast.parse(file.place.read_bytes(), str(file.place))
    except (SyntaxError, ValueError) as error:
        raise RewardFailed(f"{file.place} is not Python: {error}") from None


def _file(reward: Reward, inputs: Mapping[str, AnyArtifact]) -> File:
    found = inputs.get(FILE_PREFIX + reward.file)
    if not isinstance(found, File):
        raise NotFound(f"no reward {reward.file!r}; {nearest(reward.file, BUILT_IN)}")
    return found


def _pattern_problems(where: str, pattern: str | None) -> Iterator[Problem]:
    import re2

    if pattern is None:
        yield Problem(where, "needs a pattern", 'write {"name": "regex", "pattern": "^yes"}')
        return
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        yield Problem(where, f"{pattern!r} is no pattern of RE2: {error}", "look-around and back-references are none")


def _turn(role: str, content: str) -> JsonObject:
    return {"role": role, "content": content}
