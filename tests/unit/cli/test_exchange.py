from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelworks.cli.answers import Answer, Answerer, Body, Tell
from modelworks.cli.columns import Columns
from modelworks.cli.conversation import Conversation
from modelworks.cli.exchange import Talk
from modelworks.cli.options import Session
from modelworks.core.errors import Invalid, Unavailable
from modelworks.core.generation import QueueFull


@dataclass
class FakeSource:
    """Says each body's model and last message; `failing` models fail with their errors, one after another."""

    failing: Mapping[str, list[Exception]] = field(default_factory=dict)
    open: int = 0
    most: int = 0

    async def names(self) -> set[str]:
        return {"left", "right"}

    async def answer(self, body: Body, tell: Tell | None) -> Answer:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            for _ in range(len(body["messages"][-1]["content"]) % 7):
                await asyncio.sleep(0)
            if errors := self.failing.get(body["model"]):
                raise errors.pop(0)
            text = f"{body['model']} heard {body['messages'][-1]['content']}"
            if tell:
                tell(text)
            return Answer(text=text, completion_tokens=3)
        finally:
            self.open -= 1

    def merge(self, body: Mapping[str, object]) -> Any:
        raise NotImplementedError

    def queue(self, body: Mapping[str, object]) -> Any:
        raise NotImplementedError


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def body(text: str, model: str = "left") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def test_both_models_answer_and_one_that_fails_is_told(
    runner: asyncio.Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Invalid("too long")
    full.code = "context_length_exceeded"
    talk = Talk(Session(), Answerer(runner, FakeSource({"right": [full]}), 4), Conversation(["left", "right"]), True)

    talk.ask("hi")
    talk.ask("you")

    out, told = capsys.readouterr()
    assert "left heard hi" in out
    assert "right heard you" in out
    assert "too long; /undo or /reset makes room" in told
    assert "left: 3 tokens" in told
    assert [turn.answers for turn in talk.conversation.turns] == [
        ["left heard hi", ""], ["left heard you", "right heard you"],
    ]  # fmt: skip


def test_a_question_that_nobody_answered_is_not_kept(runner: asyncio.Runner) -> None:
    talk = Talk(Session(), Answerer(runner, FakeSource({"left": [Unavailable("gone")]}), 4), Conversation(["left"]))

    talk.ask("hi")

    assert talk.conversation.turns == []


def test_answers_come_in_the_order_asked_and_never_more_at_once(runner: asyncio.Runner) -> None:
    source = FakeSource()
    asked: list[Body | Invalid] = [body("x" * number) for number in range(1, 20)]

    answers = list(Answerer(runner, source, 4).ask_all([*asked[:3], Invalid("bad row"), *asked[3:]]))

    texts = [answer.text if isinstance(answer, Answer) else answer.message for answer in answers]
    heard = [f"left heard {'x' * number}" for number in range(1, 20)]
    assert texts == [*heard[:3], "bad row", *heard[3:]]
    assert source.most == 4


def test_a_full_queue_is_waited_for_and_a_wrong_row_stops_nobody(runner: asyncio.Runner) -> None:
    full = [QueueFull("full", retry_after_seconds=0) for _ in range(9)]
    source = FakeSource({"left": [*full, Invalid("wrong")]})

    first, second = Answerer(runner, source, 1).ask_all([body("a"), body("b")])

    assert isinstance(first, Invalid)
    assert isinstance(second, Answer)


def test_an_engine_that_stays_away_ends_it(runner: asyncio.Runner) -> None:
    source = FakeSource({"left": [Unavailable("gone", retry_after_seconds=0) for _ in range(99)]})

    with pytest.raises(Unavailable):
        list(Answerer(runner, source, 2).ask_all([body("a") for _ in range(50)]))


def test_columns_stand_beside_each_other_and_keep_their_ends_on_a_full_screen() -> None:
    columns = Columns(["left", "right"])
    columns.tell(0, "one\ntwo\nthree")
    columns.tell(1, "[bold]1")

    whole, ends = ([list(column.cells) for column in columns.table(lines).columns] for lines in (None, 2))

    assert [str(cell) for column in whole for cell in column] == ["one\ntwo\nthree", "[bold]1"]
    assert [str(cell) for column in ends for cell in column] == ["two\nthree", "[bold]1"]
