"""An answer that is alone guesses ahead: in fewer steps, and not a letter of it changes."""

from __future__ import annotations

from typing import Any

import pytest

from modelworks.core.generation import Finished, GenerateRequest
from modelworks.serve.engine import EngineSpec
from modelworks.serve.native.loop import Loop
from modelworks.serve.native.model import LoadedModel, load
from modelworks.serve.native.runner import Runner
from modelworks.serve.native.sequence import Sequence
from modelworks.serve.native.speculation import Lookup
from tiny import tiny_llama

BEGUN = "Monday, Tuesday, Monday, Tuesday, Monday,"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny_llama(tmp_path_factory.mktemp("tiny") / "m", dtype="float32")
    return load(EngineSpec(model_folder=str(folder), model_name="m", dtype="float32", max_sequences=4))


def answer(model: LoadedModel, *others: Sequence, **asked: Any) -> tuple[Sequence, Finished, int]:
    """The answer, its end, and the steps that it took with `others` beside it."""
    told: list[Any] = []
    loop = Loop(model, told.extend, 4)
    settings: dict[str, Any] = {"temperature": 0, "seed": 1, "max_tokens": 60} | asked
    sequence = model.make_sequence(GenerateRequest(id="one", model="m", prompt=BEGUN, **settings), None)
    for each in (sequence, *others):
        loop.put(each)
    while not (ended := [report for id_, report in told if id_ == "one" and isinstance(report, Finished)]):
        loop.turn()
    model.runner.cache.clear()
    return sequence, ended[0], loop._counts.steps


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    def answer_step_by_step(model: LoadedModel, **asked: Any) -> tuple[Sequence, Finished, int]:
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "speculates", False)
            return answer(model, **asked)

    return answer_step_by_step


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0.1, "seed": 3},
        {"temperature": 0.2, "seed": 4, "top_p": 0.5},
        {"max_tokens": 41},
        {"logit_bias": ((3, 5.0), (70, 5.0))},
    ],
)
def test_the_text_is_the_one_that_it_would_be_without(model: LoadedModel, without: Any, asked: dict[str, Any]) -> None:
    slow, slow_end, slow_steps = without(model, **asked)
    fast, fast_end, fast_steps = answer(model, **asked)

    assert fast.tokens == slow.tokens
    assert fast_end == slow_end
    assert fast_steps < slow_steps
    assert fast.cached == len(fast.tokens) - 1
    # The next draw is that of the next token, whatever was guessed.
    assert fast.draws.random() == slow.draws.random()


def test_what_repeats_itself_takes_far_fewer_steps(model: LoadedModel, without: Any) -> None:
    *_, slow = without(model)
    *_, fast = answer(model)

    assert fast < slow / 2, (fast, slow)


def test_an_answer_in_company_is_not_guessed(model: LoadedModel) -> None:
    request = GenerateRequest(id="other", model="m", prompt=BEGUN, temperature=0, max_tokens=60)
    other = model.make_sequence(request, None)

    assert answer(model, other, max_tokens=30)[2] >= 30


@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.1}, {"presence_penalty": 0.5}, {"logprobs": 2}])
def test_what_depends_on_the_tokens_before_is_not_guessed(model: LoadedModel, asked: dict[str, Any]) -> None:
    assert answer(model, max_tokens=20, **asked)[2] >= 20


def test_guesses_follow_the_last_time_and_reach_as_far_as_they_were_right() -> None:
    lookup, tokens = Lookup(), [1, 2, 3, 1, 2, 4, 5, 6, 7, 8, 9, 1, 2]

    assert list(lookup.guess(tokens, 9)) == [4]
    lookup.learn(1, 1)
    assert list(lookup.guess(tokens, 9)) == [4, 5, 6]
    assert list(lookup.guess(tokens, 2)) == [4, 5]
    lookup.learn(3, 0)
    assert list(lookup.guess(tokens, 9)) == [4]
    assert list(lookup.guess(tokens, -1)) == []
    assert list(lookup.guess([*tokens, 0], 9)) == []
    lookup.learn(1, 1)
    assert list(lookup.guess([*tokens, 0, 5, 6, 5, 6], 9)) == [5, 6, 5]
    assert list(lookup.guess([1], 9)) == []
